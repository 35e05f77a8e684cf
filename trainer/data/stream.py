"""A split's tokens on disk as one sequence, and windows out of it.

Shapes: B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from podium.trainer.data.manifest import Shard, load_manifest
from podium.trainer.data.shard_cache import ShardCache, size_of
from podium.trainer.data.shards import Tokens, open_shard
from podium.trainer.errors import DataError
from podium.trainer.storage import open_storage

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""x_BT and y_BT: the tokens and, one later, their targets."""


OPEN_SHARDS = 3
"""Of those that are fetched, how many are mapped at once: a batch may begin in one and end in the next."""


def open_local(source: str) -> Path | None:
    """The folder in which a dataset's shards lie, or None where it is not on this machine."""
    return Path(source.removeprefix("file://")) if source.startswith("file://") else None


class TokenStream:
    """A split's tokens as one sequence over its memory-mapped shards."""

    names: tuple[str, ...] = ()
    """The domains of its text; none where it has none."""

    def __init__(self, folder: Path, split: str, shards: Sequence[Shard] | None = None) -> None:
        """`shards` are some of the split's, by default all.

        Raises DataError where the dataset, the split or a shard can't serve.
        """
        self.manifest = load_manifest(open_storage(str(folder)))
        self.fingerprint = self.manifest.fingerprint
        declared = self.manifest.split(split)
        self._declared = declared.shards if shards is None else list(shards)
        self._ends = np.cumsum([shard.tokens for shard in self._declared], dtype=np.int64)
        # the split may end within its last shard
        self._tokens = min(int(self._ends[-1]), declared.tokens) if len(self._ends) else 0
        self._open: dict[int, Tokens] = {}
        self._cache: ShardCache | None = None
        source = self.manifest.source
        if source is not None and open_local(source) is None:
            self._cache = ShardCache(source)
            return
        self._folder = folder if source is None else open_local(source)
        for number in range(len(self._declared)):
            self._shard(number)

    @property
    def fetched_bytes(self) -> int:
        """Bytes of all shards that lie elsewhere and are fetched as they are needed; 0 where they are here."""
        return 0 if self._cache is None else sum(size_of(shard) for shard in self._declared)

    @property
    def cache_bytes(self) -> int:
        """Bytes that may be held of them."""
        return 0 if self._cache is None else self._cache.limit_bytes

    def __len__(self) -> int:
        return self._tokens

    def close(self) -> None:
        """Fetch nothing more."""
        if self._cache is not None:
            self._cache.close()

    def _shard(self, number: int) -> Tokens:
        """The tokens of a shard; of those that are fetched, the next one is asked for too."""
        if number in self._open:
            return self._open[number]
        declared = self._declared[number]
        if self._cache is None:
            assert self._folder is not None
            path = self._folder / declared.file
        else:
            path = self._cache.path(declared)
            while len(self._open) >= OPEN_SHARDS:
                del self._open[next(iter(self._open))]
        tokens = open_shard(path)
        if len(tokens) != declared.tokens:
            raise DataError(f"{path}: the manifest says {declared.tokens} tokens, got {len(tokens)}")
        self._open[number] = tokens
        if self._cache is not None and len(self._declared) > 1:
            self._cache.want(self._declared[(number + 1) % len(self._declared)])
        return tokens

    def count(self, sequence_length: int) -> int:
        """Whole windows of this length."""
        return max(0, (len(self) - 1) // sequence_length)

    def domains(self, indices: npt.NDArray[np.int64], sequence_length: int) -> npt.NDArray[np.int64] | None:
        """The number, in `names`, of each window's domain; None where there are none."""
        return None

    def windows(self, indices: npt.NDArray[np.int64], sequence_length: int, read: int | None = None) -> Batch:
        """The windows of these numbers: tokens [i·T, i·T + T] each, gathered across shard ends where need be.

        Of each, the first `read` are given, by default all T.
        """
        width = (read or sequence_length) + 1
        rows = np.empty((len(indices), width), dtype=np.uint16)
        starts = indices * sequence_length
        shards = np.searchsorted(self._ends, starts, side="right")
        for row, start, shard in zip(rows, starts.tolist(), shards.tolist(), strict=True):
            tokens = self._shard(shard)
            begin = start - (int(self._ends[shard]) - len(tokens))
            part = tokens[begin : begin + width]
            if len(part) == width:
                row[:] = part
            else:
                self._gather(row, part, shard)
        return rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)

    def _gather(self, row: Tokens, part: Tokens, shard: int) -> None:
        filled = 0
        while True:
            row[filled : filled + len(part)] = part
            filled += len(part)
            if filled == len(row):
                return
            shard += 1
            part = self._shard(shard)[: len(row) - filled]
