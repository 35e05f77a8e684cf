"""Batches from shards: a global order that depends on data, seed and position alone, for any number of ranks.

A split's tokens, end to end over its shards, are cut into windows of T tokens (each reads one token more, its last
target); what is left at the end is not used. Every epoch visits every window once, in an order drawn from
(seed, epoch), or as they lie. Position counts windows since the start of training, over all ranks: it is the whole
state.

A step of a curriculum takes as many windows as any other: cropped, each gives its first tokens; else all their tokens,
end to end, are cut into sequences of another length.

Shapes: B sequences of this rank, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from podium.trainer.builtin.config import StepShape
from podium.trainer.builtin.data.manifest import Shard, load_manifest
from podium.trainer.builtin.data.shard_cache import LIMIT_VARIABLE, ShardCache, size_of
from podium.trainer.builtin.data.shards import Tokens, open_shard
from podium.trainer.trial.errors import CheckpointError, ConfigError, DataError
from podium.trainer.trial.storage import open_storage

# A split's tokens on disk as one sequence, and windows out of it.
#
# Shapes: B windows, T tokens.

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


# The tokens of a split whose shards belong to domains, cut so that no sequence is of two.
#
# Each domain's tokens, end to end over its shards, are cut into windows of T tokens like any split's; what is left at a
# domain's end is not used. The windows are numbered so that any first ones have the domains in the proportions of all.
#
# Shapes: W windows, B of them that are asked for, T tokens.

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


class SequenceLoader:
    """Training batches of one rank. `next_batch` gives this rank's contiguous slice of the global batch.

    The batch after the one that was asked for is made on a thread meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        sequence_length: int,
        batch_sequences: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        balance: bool = False,
    ) -> None:
        """`batch_sequences` is one optimizer step's, over all ranks; `balance` takes as much of every domain.

        Raises DataError where the split has no whole window, ConfigError where the batch does not divide by the ranks.
        """
        if batch_sequences % world_size:
            raise ConfigError(f"batch.sequences: must divide by {world_size} devices, got {batch_sequences}")
        self._stream = open_stream(folder, split, balance=balance)
        self.names = self._stream.names
        """The domains of the text; none where it has none."""
        self.domains_B: npt.NDArray[np.int64] | None = None
        """Of the sequences of the last batch: the number, in `names`, of each one's domain."""
        if shuffle and self._stream.fetched_bytes > self._stream.cache_bytes:
            raise ConfigError(
                f"data.order: 'shuffled' reads all shards all the time: {self._stream.fetched_bytes} bytes, "
                f"where {LIMIT_VARIABLE} allows {self._stream.cache_bytes}: take 'sequential', or raise it"
            )
        self.tokens_in_split = len(self._stream)
        self.sequences = _whole_windows(self._stream, sequence_length, f"split {split!r} of {folder}")
        self._split = split
        self._length = sequence_length
        self._batch = batch_sequences
        self._rank, self._world_size = rank, world_size
        self._seed = seed
        self._shuffle, self._balance = shuffle, balance
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._position = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="podium-batches")
        self._ahead: tuple[tuple[int, StepShape], Future[Batch]] | None = None

    def next_batch(self, shape: StepShape | None = None) -> Batch:
        """The next optimizer step's x_BT and y_BT of this rank; `shape` is the step's over all ranks."""
        shape = shape or StepShape(self._batch, self._length)
        batch = self._take(self._position, shape)
        if self.names:
            first, last = rank_slice(shape.sequences, self._rank, self._world_size)
            windows = self._indices(self._position + first, self._position + last)
            self.domains_B = self._stream.domains(windows, self._length)
        self._position += self._batch
        self._ahead = (self._position, shape), self._thread.submit(self._make, self._position, shape)
        return batch

    def passes(self, tokens: int) -> float:
        """How often training on this many tokens goes through the split's windows."""
        return tokens / (self.sequences * self._length)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it is a stream of."""
        return {"position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, with any number of ranks and any batch. Raises CheckpointError for another stream's."""
        wrong = [
            f"{name} must be {mine!r}, got {state.get(name)!r}"
            for name, mine in self._identity().items()
            if state.get(name) != mine
        ]
        if wrong:
            raise CheckpointError(f"loader_state: of another stream of data: {'; '.join(wrong)}")
        self._position = int(state["position"])

    def close(self) -> None:
        """End the threads that work ahead; no batch can be asked for afterwards."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stream.close()

    def _take(self, position: int, shape: StepShape) -> Batch:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == (position, shape):
            return ahead[1].result()
        if ahead is not None:
            ahead[1].cancel() or ahead[1].exception()  # the stream is one thread's at a time
        return self._make(position, shape)

    def _make(self, position: int, shape: StepShape) -> Batch:
        first, last = rank_slice(shape.sequences, self._rank, self._world_size)
        if shape.cropped or shape.length == self._length:
            return self._stream.windows(self._indices(position + first, position + last), self._length, shape.length)
        begin, end = first * shape.length, last * shape.length  # of the step's tokens, end to end
        window, until = begin // self._length, -(-end // self._length)
        batch = self._stream.windows(self._indices(position + window, position + until), self._length)
        skipped = window * self._length
        x, y = (part.reshape(-1)[begin - skipped : end - skipped].reshape(-1, shape.length) for part in batch)
        return x, y

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset": self._stream.fingerprint,
            "split": self._split,
            "sequence_length": self._length,
            "seed": self._seed,
            "shuffle": self._shuffle,
            **({"balance": self._balance} if self.names else {}),
        }

    def _indices(self, first: int, last: int) -> npt.NDArray[np.int64]:
        epoch, begin = divmod(first, self.sequences)
        order = self._order(epoch)
        if begin + last - first <= self.sequences:
            return order[begin : begin + last - first]
        parts = [order[begin:]]
        missing = last - first - len(parts[0])
        while missing > 0:
            epoch += 1
            parts.append(self._order(epoch)[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            # Two epochs at most: a batch may reach over the end of one, and a rank's slice begin after it.
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = _permutation(self.sequences, self._seed, epoch, shuffle=self._shuffle)
        return self._orders[epoch]


def rank_slice(sequences: int, rank: int, world_size: int) -> tuple[int, int]:
    """The first and, exclusive, the last of a step's sequences that this rank takes; shares differ by one at most."""
    share, rest = divmod(sequences, world_size)
    first = rank * share + min(rank, rest)
    return first, first + share + (rank < rest)


def evaluation_batches(
    folder: Path, split: str, *, sequence_length: int, batch_sequences: int, sequences: int | None = None
) -> Iterator[Batch]:
    """The split's first `sequences` windows (by default all), in order; the last batch may be smaller.

    Raises DataError at the call where the split has no whole window, or fewer than asked for.
    """
    stream = open_stream(folder, split)
    whole = _whole_windows(stream, sequence_length, f"split {split!r} of {folder}")
    if sequences is not None and sequences > whole:
        raise DataError(f"evaluation.sequences: split {split!r} of {folder} has {whole} sequences, got {sequences}")
    count = whole if sequences is None else sequences

    def batches() -> Iterator[Batch]:
        for first in range(0, count, batch_sequences):
            yield stream.windows(np.arange(first, min(first + batch_sequences, count)), sequence_length)

    return batches()


def evaluation_domains(
    folder: Path, split: str, *, sequence_length: int, sequences: int | None = None
) -> tuple[str, ...]:
    """The domain of each sequence of `evaluation_batches`; empty where the data has none."""
    stream = open_stream(folder, split)
    count = stream.count(sequence_length) if sequences is None else sequences
    domains = stream.domains(np.arange(count), sequence_length)
    return () if domains is None else tuple(stream.names[number] for number in domains)


def _whole_windows(stream: TokenStream, sequence_length: int, where: str) -> int:
    whole = stream.count(sequence_length)
    if whole < 1:
        raise DataError(f"{where}: must have at least one block of {sequence_length + 1} tokens, got {len(stream)}")
    return whole


def _permutation(count: int, seed: int, epoch: int, *, shuffle: bool) -> npt.NDArray[np.int64]:
    """The order of an epoch. From raw Philox words: NumPy promises their stream for good, not `permutation`'s."""
    if not shuffle:
        return np.arange(count)
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable")
