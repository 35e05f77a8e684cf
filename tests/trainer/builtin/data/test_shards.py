"""The .bin format: what FineWeb's readers read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podium.trainer.builtin.data.shards import ShardWriter, open_shard
from podium.trainer.trial.errors import DataError


def write(
    path: Path, *, magic: int = 20240520, version: int = 1, says: int = 5, tokens: int = 5, extra: int = 0
) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, says
    path.write_bytes(header.tobytes() + np.arange(tokens, dtype="<u2").tobytes() + bytes(extra))
    return path


def test_a_shard_of_the_format_is_read(tmp_path: Path) -> None:
    tokens = open_shard(write(tmp_path / "a.bin"))
    assert tokens.tolist() == [0, 1, 2, 3, 4]
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"magic": 20240521}, "magic number must be 20240520, got 20240521"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"says": 6}, "the header says 6 tokens, the file holds 5"),
        ({"says": 4}, "the header says 4 tokens, the file holds 5"),
        ({"says": -1, "tokens": 0}, "the header says -1 tokens, the file holds 0"),
        ({"extra": 1}, "the header says 5 tokens, the file holds 5 and a half"),
    ],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, wrong: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=f"a.bin: {words}"):
        open_shard(write(tmp_path / "a.bin", **wrong))


def test_a_shard_cut_in_its_header_or_absent_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(1000))
    with pytest.raises(DataError, match=r"a\.bin: must begin with a header of 1024 bytes, got 1000"):
        open_shard(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"b\.bin: can't be read: No such file"):
        open_shard(tmp_path / "b.bin")


def test_an_empty_shard_is_read_as_such(tmp_path: Path) -> None:
    assert len(open_shard(write(tmp_path / "a.bin", says=0, tokens=0))) == 0


@settings(deadline=None)  # it writes files: on a busy machine an example takes longer than the default 0.2 s
@given(parts=st.lists(st.integers(0, 40), max_size=8), limit=st.integers(1, 30))
def test_what_is_written_in_any_pieces_is_read_as_one_sequence(
    tmp_path_factory: pytest.TempPathFactory, parts: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = np.arange(sum(parts), dtype=np.uint16)
    with ShardWriter(folder, "train", shard_tokens=limit) as writer:
        for part in np.split(whole, np.cumsum(parts)):
            writer.append(part)
    read = [open_shard(folder / shard.file) for shard in writer.shards]
    assert np.array_equal(np.concatenate([*read, whole[:0]]), whole)
    assert [len(tokens) for tokens in read] == [shard.tokens for shard in writer.shards]
    assert all(len(tokens) == limit for tokens in read[:-1])
    assert [path.name for path in sorted(folder.iterdir())] == [shard.file for shard in writer.shards]
