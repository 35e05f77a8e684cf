"""Shards in S3 are named by a manifest, fetched through the cache, and told from what replaced them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from podium.trainer.builtin.data import shard_cache
from podium.trainer.builtin.data.corpus import parse_corpus
from podium.trainer.builtin.data.loader import SequenceLoader
from podium.trainer.builtin.data.manifest import dataset_folder
from podium.trainer.builtin.data.prepare import PrepareConfig, dataset_key, prepare
from podium.trainer.builtin.data.shards import ShardWriter
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.storage import Storage, join_uri, open_storage


@pytest.fixture
def place(s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Two training shards and one for validation in S3."""
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "FIRST_WAIT_SECONDS", 0.01)
    shards = s3.child("shards")
    for number, name in enumerate(("fineweb_train_000001", "fineweb_train_000002", "fineweb_val_000000")):
        with ShardWriter(tmp_path, name) as writer:
            writer.append(np.arange(number * 500, (number + 1) * 500, dtype=np.uint16))
        shards.upload(tmp_path / f"{name}-00000.bin", f"{name}.bin")
    return shards


def folder_of(place: Storage, store: Storage) -> Path:
    config = PrepareConfig(corpus=parse_corpus(f"fineweb:{place.uri}"), vocab_size=50304)
    return dataset_folder(join_uri(store.uri, dataset_key(prepare(config, store).fingerprint)))


def first_batches(folder: Path, count: int) -> np.ndarray:
    loader = SequenceLoader(folder, "train", sequence_length=16, batch_sequences=8, seed=1, shuffle=False)
    try:
        return np.concatenate([loader.next_batch()[0] for _ in range(count)])
    finally:
        loader.close()


def test_shards_in_s3_are_read_end_to_end(place: Storage, s3: Storage, tmp_path: Path) -> None:
    folder = folder_of(place, s3)
    assert np.array_equal(first_batches(folder, 7).reshape(-1), np.arange(7 * 128))
    held = {path.name.partition("-")[2] for path in (tmp_path / "cache" / "shards").glob("*.bin")}
    assert held == {"fineweb_train_000001.bin", "fineweb_train_000002.bin"}


def test_a_shard_that_was_replaced_is_refused(place: Storage, s3: Storage, tmp_path: Path) -> None:
    folder = folder_of(place, s3)
    with ShardWriter(tmp_path, "other") as writer:
        writer.append(np.zeros(500, dtype=np.uint16))
    place.upload(tmp_path / "other-00000.bin", "fineweb_train_000001.bin")
    with pytest.raises(DataError, match=r"fineweb_train_000001\.bin was replaced since the dataset was prepared"):
        first_batches(folder, 1)


def test_a_shard_in_s3_with_fewer_tokens_than_its_header_says_is_refused(
    place: Storage, s3: Storage, tmp_path: Path
) -> None:
    content = (tmp_path / "fineweb_train_000001-00000.bin").read_bytes()
    place.write_bytes("fineweb_train_000001.bin", content[:-200])
    with pytest.raises(DataError, match=r"the header says 500 tokens, the file holds 400"):
        first_batches(folder_of(place, open_storage(str(tmp_path / "store"))), 1)
