"""Shards of tokens on disk, in the `.bin` format of llm.c, FineWeb and modded-nanogpt.

256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the tokens as little-endian uint16.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from podium.trainer.builtin.data.manifest import HEADER_BYTES, HEADER_INTS, SHARD_TOKENS, Shard
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.storage import sha256_of

MAGIC, VERSION = 20240520, 1

Tokens = npt.NDArray[np.uint16]


def open_shard(path: Path) -> Tokens:
    """The tokens of a shard, memory-mapped, read-only. Raises DataError naming the file where it is not a whole shard.

    Nothing but the header is read here.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    if len(header) < HEADER_INTS:
        raise DataError(f"{path}: must begin with a header of {HEADER_BYTES} bytes, got {size} bytes")
    if header[0] != MAGIC:
        raise DataError(f"{path}: magic number must be {MAGIC}, got {header[0]}")
    if header[1] != VERSION:
        raise DataError(f"{path}: version must be {VERSION}, got {header[1]}")
    held, odd = divmod(size - HEADER_BYTES, 2)
    if header[2] < 0 or held != header[2] or odd:
        raise DataError(f"{path}: the header says {header[2]} tokens, the file holds {held}" + " and a half" * odd)
    if held == 0:
        return np.empty(0, dtype="<u2")
    # A plain view: every slice of an np.memmap would pay for its Python subclass.
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(held,)).view(np.ndarray)


class ShardWriter:
    """Writes the tokens of one split into `<split>-<number>.bin`, a new file whenever one is full."""

    def __init__(
        self, folder: Path, split: str, *, shard_tokens: int = SHARD_TOKENS, domain: str | None = None
    ) -> None:
        """`domain` is that of all its tokens, where the corpus is of several."""
        self._folder = folder
        self._name = split if domain is None else f"{split}-{domain}"
        self._domain = domain
        self._limit = shard_tokens
        self._file: BinaryIO | None = None
        self._tokens = 0
        self.shards: list[Shard] = []

    def append(self, tokens: Tokens) -> None:
        """Add tokens, uint16, in reading order; a document may go on in the next shard."""
        while len(tokens):
            if self._file is None:
                self._file = self._path.open("wb")
                self._file.write(bytes(HEADER_BYTES))
            part, tokens = tokens[: self._limit - self._tokens], tokens[self._limit - self._tokens :]
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._tokens += len(part)
            if self._tokens == self._limit:
                self.close()

    def close(self) -> None:
        """Finish the file at hand."""
        if self._file is None:
            return
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = MAGIC, VERSION, self._tokens
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.close()
        path = self._path
        self.shards.append(Shard(file=path.name, tokens=self._tokens, sha256=sha256_of(path), domain=self._domain))
        self._file = None
        self._tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}-{len(self.shards):05d}.bin"
