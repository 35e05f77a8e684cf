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

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from podium.trainer.curriculum_config import StepShape
from podium.trainer.data.manifest import load_manifest
from podium.trainer.data.shards import Tokens, open_shard
from podium.trainer.errors import CheckpointError, ConfigError, DataError
from podium.trainer.storage import open_storage

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""x_BT and y_BT: the tokens and, one later, their targets."""


class TokenStream:
    """A split's tokens as one sequence over its memory-mapped shards."""

    def __init__(self, folder: Path, split: str) -> None:
        """Raises DataError where the dataset, the split or a shard can't serve."""
        manifest = load_manifest(open_storage(str(folder)))
        self.fingerprint = manifest.fingerprint
        shards = manifest.split(split).shards
        self._shards: list[Tokens] = []
        for shard in shards:
            tokens = open_shard(folder / shard.file)
            if len(tokens) != shard.tokens:
                raise DataError(f"{folder / shard.file}: the manifest says {shard.tokens} tokens, got {len(tokens)}")
            self._shards.append(tokens)
        self._ends = np.cumsum([len(tokens) for tokens in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

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
    ) -> None:
        """`batch_sequences` is one optimizer step's, over all ranks.

        Raises DataError where the split has no whole window, ConfigError where the batch does not divide by the ranks.
        """
        if batch_sequences % world_size:
            raise ConfigError(f"batch.sequences: must divide by {world_size} devices, got {batch_sequences}")
        self._stream = TokenStream(folder, split)
        self.tokens_in_split = len(self._stream)
        self.sequences = _whole_windows(self._stream, sequence_length, f"split {split!r} of {folder}")
        self._split = split
        self._length = sequence_length
        self._batch = batch_sequences
        self._rank, self._world_size = rank, world_size
        self._seed = seed
        self._shuffle = shuffle
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._position = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="podium-batches")
        self._ahead: tuple[tuple[int, StepShape], Future[Batch]] | None = None

    def next_batch(self, shape: StepShape | None = None) -> Batch:
        """The next optimizer step's x_BT and y_BT of this rank; `shape` is the step's over all ranks."""
        shape = shape or StepShape(self._batch, self._length)
        batch = self._take(self._position, shape)
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
        """End the thread. Whoever asks for no more batches need not wait for the one under way."""
        self._thread.shutdown(wait=True, cancel_futures=True)

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
    stream = TokenStream(folder, split)
    whole = _whole_windows(stream, sequence_length, f"split {split!r} of {folder}")
    if sequences is not None and sequences > whole:
        raise DataError(f"evaluation.sequences: split {split!r} of {folder} has {whole} sequences, got {sequences}")
    count = whole if sequences is None else sequences

    def batches() -> Iterator[Batch]:
        for first in range(0, count, batch_sequences):
            yield stream.windows(np.arange(first, min(first + batch_sequences, count)), sequence_length)

    return batches()


def _whole_windows(stream: TokenStream, sequence_length: int, where: str) -> int:
    whole = (len(stream) - 1) // sequence_length
    if whole < 1:
        raise DataError(f"{where}: must have at least one block of {sequence_length + 1} tokens, got {len(stream)}")
    return whole


def _permutation(count: int, seed: int, epoch: int, *, shuffle: bool) -> npt.NDArray[np.int64]:
    """The order of an epoch. From raw Philox words: NumPy promises their stream for good, not `permutation`'s."""
    if not shuffle:
        return np.arange(count)
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable")
