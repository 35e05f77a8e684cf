"""A split's tokens on disk as one sequence, and windows out of it.

Shapes: B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from podium.trainer.data.manifest import Shard, load_manifest
from podium.trainer.data.shards import Tokens, open_shard
from podium.trainer.errors import DataError
from podium.trainer.storage import open_storage

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""x_BT and y_BT: the tokens and, one later, their targets."""


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
        shards = self.manifest.split(split).shards if shards is None else shards
        self._shards: list[Tokens] = []
        for shard in shards:
            tokens = open_shard(folder / shard.file)
            if len(tokens) != shard.tokens:
                raise DataError(f"{folder / shard.file}: the manifest says {shard.tokens} tokens, got {len(tokens)}")
            self._shards.append(tokens)
        self._ends = np.cumsum([len(tokens) for tokens in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

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
            tokens = self._shards[shard]
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
            part = self._shards[shard][: len(row) - filled]
