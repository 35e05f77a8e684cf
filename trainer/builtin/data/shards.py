"""Shards of tokens on disk, in the `.bin` format of llm.c, FineWeb and modded-nanogpt.

256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the tokens as little-endian uint16.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from podium.trainer.trial.errors import DataError, NotFoundError, Problem
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import MANIFEST, Storage, get_folder, join_uri, open_storage, sha256_of

# `manifest.json` of a prepared dataset: written last, so that its existence means that the dataset is complete.

TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"  # noqa: S105  a file name
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
SHARD_TOKENS = 100_000_000
"""Tokens of a full shard, as FineWeb's."""


class FileEntry(Section):
    """One file of the dataset's folder."""

    bytes: int
    sha256: str


class Shard(Section):
    """One `.bin` file of a split."""

    file: str
    tokens: int
    sha256: str | None
    """None where it lies elsewhere and its place does not say."""
    stamp: str | None = None
    """Of a shard that lies elsewhere: what its place gave for its content when the dataset was prepared."""
    domain: str | None = None
    """What kind of text it holds, where the corpus is of several."""


class Split(Section):
    """One split, its shards in reading order."""

    tokens: int
    """End-of-text tokens included. Where its last shard has more, the rest is not the split's."""
    bytes: int | None
    """UTF-8 bytes of its documents; None where only their tokens are known."""
    documents: int | None
    shards: list[Shard]


class Manifest(Section):
    """What a prepared dataset is and where it came from."""

    format_version: Literal[1] = 1
    fingerprint: str
    """Of the corpus, the tokenizer's settings and the format: the name of the dataset's folder."""
    corpus: str
    """The corpus in words."""
    corpus_fingerprint: str
    vocab_size: int = Field(gt=1, le=65536)
    """Vocabulary that was asked for: the rows of a model's embedding."""
    tokenizer_size: int
    """Vocabulary that the tokenizer has: less than `vocab_size` where the corpus has too little text to fill it."""
    end_of_text: int
    """Id of the token after every document."""
    splits: dict[str, Split]
    files: dict[str, FileEntry]
    source: str | None = None
    """Where the shards lie: a folder's or S3's URI, or hub://owner/name@commit; None: in the dataset's folder."""

    @property
    def tokenizer_sha256(self) -> str | None:
        """Identity of the tokenizer: losses per token compare only where it is the same. None where it is not here."""
        return self.files[TOKENIZER].sha256 if TOKENIZER in self.files else None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of a mixture, in order; none of any other corpus."""
        found = dict.fromkeys(shard.domain for split in self.splits.values() for shard in split.shards)
        return tuple(name for name in found if name is not None)

    def split(self, name: str) -> Split:
        """The split called `name`. Raises DataError naming those there are."""
        if name not in self.splits:
            raise DataError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        return self.splits[name]


def load_manifest(storage: Storage) -> Manifest:
    """The manifest of the dataset at the storage's root. Raises DataError where it is missing or damaged."""
    where = join_uri(storage.uri, MANIFEST)
    try:
        return Manifest.model_validate_json(storage.read_bytes(MANIFEST))
    except NotFoundError:
        raise DataError(f"no prepared dataset at {storage.uri}: it has no {MANIFEST} (prepare it first)") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(Problem(where, f"not a dataset's manifest: {place or 'the file'}: {first['msg']}")) from None


def check_lengths(manifest: Manifest, sequence_length: int, splits: tuple[str, ...] = (TRAIN, VALIDATION)) -> None:
    """Refuse a dataset with a split shorter than one block of sequence_length + 1 tokens. Raises DataError."""
    short = [
        Problem(
            name, f"must have at least one block of {sequence_length + 1} tokens, got {manifest.split(name).tokens}"
        )
        for name in splits
        if manifest.split(name).tokens < sequence_length + 1
    ]
    if short:
        raise DataError(short, source=f"dataset {manifest.fingerprint} ({manifest.corpus})")


def dataset_folder(uri: str, cache_dir: Path | None = None) -> Path:
    """A local folder of the prepared dataset at `uri`, every file verified against its sha256.

    A `file://` dataset is read where it is; one in S3 is fetched once into `cache_dir` (by default the user's cache
    folder). Raises DataError where there is no dataset, StorageError where it is damaged or can't be fetched.
    """
    storage = open_storage(uri)
    load_manifest(storage)
    return get_folder(storage, "", cache_dir or default_cache() / "datasets")


def default_cache() -> Path:
    """`$PODIUM_CACHE`, else `podium` in the user's cache folder."""
    given = os.environ.get("PODIUM_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podium"


MAGIC, VERSION = 20240520, 1
HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4

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
