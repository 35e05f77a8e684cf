"""The tokens of a split whose shards belong to domains, cut so that no sequence is of two.

Each domain's tokens, end to end over its shards, are cut into windows of T tokens like any split's; what is left at a
domain's end is not used. The windows are numbered so that any first ones have the domains in the proportions of all.

Shapes: W windows, B of them that are asked for, T tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from podium.trainer.data.manifest import load_manifest
from podium.trainer.data.stream import Batch, TokenStream
from podium.trainer.storage import open_storage

Numbers = npt.NDArray[np.int64]


def open_stream(folder: Path, split: str, *, balance: bool = False) -> TokenStream:
    """A split's tokens, by domain where the dataset has domains.

    `balance` takes as much of every domain. Raises DataError where the dataset or the split can't serve.
    """
    if load_manifest(open_storage(str(folder))).domains:
        return DomainStream(folder, split, balance=balance)
    return TokenStream(folder, split)


class DomainStream(TokenStream):
    """A split's tokens by domain. `windows` and `count` are those of a TokenStream; `domains` tells a window's own."""

    def __init__(self, folder: Path, split: str, *, balance: bool = False) -> None:
        """With `balance`, of every domain as many windows as the smallest has. Raises DataError as TokenStream does."""
        super().__init__(folder, split)
        shards = self.manifest.split(split).shards
        self.names = self.manifest.domains
        self._balance = balance
        self._parts = {
            name: TokenStream(folder, split, [shard for shard in shards if shard.domain == name]) for name in self.names
        }
        self._tables: dict[int, tuple[Numbers, Numbers]] = {}

    def count(self, sequence_length: int) -> int:
        """Windows of this length."""
        return len(self._table(sequence_length)[0])

    def windows(self, indices: Numbers, sequence_length: int, read: int | None = None) -> Batch:
        """The windows of these numbers; of each the first `read` tokens, by default all T."""
        domain_B, number_B = (column[indices] for column in self._table(sequence_length))
        x = np.empty((len(indices), read or sequence_length), dtype=np.int64)
        y = np.empty_like(x)
        for domain, name in enumerate(self.names):
            mine = domain_B == domain
            x[mine], y[mine] = self._parts[name].windows(number_B[mine], sequence_length, read)
        return x, y

    def domains(self, indices: Numbers, sequence_length: int) -> Numbers:
        """The number, in `names`, of each window's domain."""
        return self._table(sequence_length)[0][indices]

    def _table(self, length: int) -> tuple[Numbers, Numbers]:
        """Of each window its domain, and its number within that."""
        if length not in self._tables:
            counts = [part.count(length) for part in self._parts.values()]
            counts = [min(counts)] * len(counts) if self._balance else counts
            domain_W = np.repeat(np.arange(len(counts)), counts)
            number_W = np.concatenate([np.arange(count) for count in counts])
            # how far along its own domain a window is decides its place
            order = np.argsort((number_W + 0.5) / np.repeat(counts, counts), kind="stable")
            self._tables[length] = domain_W[order], number_W[order]
        return self._tables[length]
