"""The loader: one stream of data, whatever reads it and wherever it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podium.trainer.builtin.data.loader import SequenceLoader, evaluation_batches
from podium.trainer.trial.errors import CheckpointError, ConfigError, DataError

MakeDataset = Any
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def loader(folder: Path, **changes: Any) -> SequenceLoader:
    options: dict[str, Any] = {"sequence_length": 8, "batch_sequences": 4, "seed": 1}
    return SequenceLoader(folder, "train", **{**options, **changes})


def starts(batch: tuple[np.ndarray, np.ndarray]) -> list[int]:
    x_BT, y_BT = batch
    assert x_BT.dtype == y_BT.dtype == np.int64
    assert x_BT.flags.c_contiguous
    assert y_BT.flags.c_contiguous
    assert np.array_equal(x_BT, x_BT[:, :1] + np.arange(x_BT.shape[1]))
    assert np.array_equal(y_BT, x_BT + 1)
    return x_BT[:, 0].tolist()


def test_every_epoch_is_a_permutation_of_all_windows_and_no_two_are_alike(make_dataset: MakeDataset) -> None:
    stream = loader(make_dataset(8 * 40 + 3, shard_tokens=100), batch_sequences=4)
    assert (stream.tokens_in_split, stream.sequences) == (323, 40)
    epochs = [[start for _ in range(10) for start in starts(stream.next_batch())] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 320, 8))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_fixed_for_good(make_dataset: MakeDataset) -> None:
    """A new NumPy must not move a run that is resumed."""
    stream = loader(make_dataset(8 * 10 + 1), batch_sequences=10, seed=42)
    assert starts(stream.next_batch()) == [0, 8, 32, 16, 48, 64, 40, 72, 56, 24]
    assert starts(stream.next_batch()) == [56, 24, 32, 16, 40, 72, 48, 64, 0, 8]


def test_without_shuffling_windows_come_in_order(make_dataset: MakeDataset) -> None:
    stream = loader(make_dataset(8 * 6 + 1), shuffle=False)
    assert starts(stream.next_batch()) == [0, 8, 16, 24]
    assert starts(stream.next_batch()) == [32, 40, 0, 8]


@once
@given(
    tokens=st.integers(9, 400),
    shard_tokens=st.integers(1, 120),
    share=st.integers(1, 5),
    world_size=st.integers(1, 4),
    other=st.integers(1, 4),
    before=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_the_stream_is_the_same_for_any_ranks_and_resumes_at_any_step_on_any_number(
    make_dataset: MakeDataset,
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    shard_tokens: int,
    share: int,
    world_size: int,
    other: int,
    before: int,
    seed: int,
) -> None:
    folder = make_dataset(tokens, shard_tokens=shard_tokens, name=tmp_path_factory.mktemp("d").name)
    batch = share * world_size * other
    alone = loader(folder, batch_sequences=batch, seed=seed)
    wanted = [starts(alone.next_batch()) for _ in range(before + 4)]

    ranks = [
        loader(folder, batch_sequences=batch, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in range(before):
        assert [start for stream in ranks for start in starts(stream.next_batch())] == wanted[step]
    states = [stream.state_dict() for stream in ranks]
    assert all(state == states[0] for state in states)

    ranks = [loader(folder, batch_sequences=batch, seed=seed, rank=rank, world_size=other) for rank in range(other)]
    for stream in ranks:
        stream.load_state_dict(states[0])
    for step in range(before, before + 4):
        assert [start for stream in ranks for start in starts(stream.next_batch())] == wanted[step]


def test_another_batch_size_goes_on_from_the_same_place(make_dataset: MakeDataset) -> None:
    folder = make_dataset(8 * 20 + 1)
    wide = loader(folder, batch_sequences=12)
    wanted = starts(wide.next_batch()) + starts(wide.next_batch())
    narrow = loader(folder, batch_sequences=3)
    got = [start for _ in range(4) for start in starts(narrow.next_batch())]
    rest = loader(folder, batch_sequences=6)
    rest.load_state_dict(narrow.state_dict())
    assert got + starts(rest.next_batch()) + starts(rest.next_batch()) == wanted


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 2}, "seed must be 2, got 1"),
        ({"sequence_length": 4}, "sequence_length must be 4, got 8"),
        ({"shuffle": False}, "shuffle must be False, got True"),
    ],
)
def test_a_state_of_another_stream_is_refused(make_dataset: MakeDataset, changes: dict[str, Any], named: str) -> None:
    folder = make_dataset(200)
    with pytest.raises(CheckpointError, match=named):
        loader(folder, **changes).load_state_dict(loader(folder).state_dict())


def test_a_state_of_another_dataset_is_refused(make_dataset: MakeDataset) -> None:
    state = loader(make_dataset(200)).state_dict()
    with pytest.raises(CheckpointError, match="dataset must be 'other-200', got 'dataset-200'"):
        loader(make_dataset(200, name="other")).load_state_dict(state)


def test_a_batch_larger_than_an_epoch_goes_through_several(make_dataset: MakeDataset) -> None:
    got = starts(loader(make_dataset(8 * 3 + 1), batch_sequences=9).next_batch())
    assert [sorted(got[first : first + 3]) for first in (0, 3, 6)] == [[0, 8, 16]] * 3


def test_passes_count_windows(make_dataset: MakeDataset) -> None:
    assert loader(make_dataset(8 * 10 + 5)).passes(160) == 2.0


def test_a_split_shorter_than_a_block_is_refused(make_dataset: MakeDataset) -> None:
    with pytest.raises(DataError, match="must have at least one block of 9 tokens, got 8"):
        loader(make_dataset(8))
    with pytest.raises(DataError, match="must have at least one block of 9 tokens, got 0"):
        list(evaluation_batches(make_dataset(0, name="empty"), "train", sequence_length=8, batch_sequences=4))


def test_a_batch_that_ranks_can_not_share_is_refused(make_dataset: MakeDataset) -> None:
    with pytest.raises(ConfigError, match=r"batch\.sequences: must divide by 3 devices, got 4"):
        loader(make_dataset(200), world_size=3)


def test_a_missing_split_and_a_folder_that_is_no_dataset_are_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split must be one of train, got 'validation'"):
        SequenceLoader(make_dataset(200), "validation", sequence_length=8, batch_sequences=1, seed=0)
    with pytest.raises(DataError, match=r"no prepared dataset at .*: it has no manifest\.json"):
        loader(tmp_path)


def test_a_shard_that_is_not_the_manifests_is_refused(make_dataset: MakeDataset) -> None:
    folder, other = make_dataset(200), make_dataset(300, name="other")
    (folder / "train-00000.bin").write_bytes((other / "train-00000.bin").read_bytes())
    with pytest.raises(DataError, match=r"train-00000\.bin: the manifest says 200 tokens, got 300"):
        loader(folder)


def test_evaluation_reads_all_windows_in_order(make_dataset: MakeDataset) -> None:
    folder = make_dataset(8 * 10 + 1, shard_tokens=30)
    batches = [starts(batch) for batch in evaluation_batches(folder, "train", sequence_length=8, batch_sequences=4)]
    assert batches == [[0, 8, 16, 24], [32, 40, 48, 56], [64, 72]]
    few = evaluation_batches(folder, "train", sequence_length=8, batch_sequences=4, sequences=5)
    assert [starts(batch) for batch in few] == [[0, 8, 16, 24], [32]]


def test_evaluation_of_more_than_there_is_is_refused_before_the_first_batch(make_dataset: MakeDataset) -> None:
    with pytest.raises(DataError, match=r"has 10 sequences, got 11"):
        evaluation_batches(make_dataset(81), "train", sequence_length=8, batch_sequences=4, sequences=11)
