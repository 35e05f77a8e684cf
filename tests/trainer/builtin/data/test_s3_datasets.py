"""Data that comes from S3 and goes to S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from podium.trainer.builtin.data.corpus import CorpusConfig, corpus_fingerprint, open_corpus, parse_corpus
from podium.trainer.builtin.data.loader import SequenceLoader
from podium.trainer.builtin.data.manifest import dataset_folder
from podium.trainer.builtin.data.prepare import PrepareConfig, dataset_key, prepare
from podium.trainer.trial.errors import DataError, StorageError
from podium.trainer.trial.storage import Storage, join_uri, open_storage

TEXT = "".join(f"Paragraph {number} of it.\n\n" for number in range(3000))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_corpus_in_s3_is_the_same_corpus_as_on_disk_and_fetched_once(
    s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    s3.write_text("texts/a.txt", TEXT)
    s3.write_bytes("texts/picture.png", b"\x89PNG")
    for uri in (join_uri(s3.uri, "texts"), join_uri(s3.uri, "texts/a.txt")):
        here = CorpusConfig(source="files", path=str(tmp_path / "a.txt"))
        assert corpus_fingerprint(parse_corpus(uri)) == corpus_fingerprint(here)
        assert list(open_corpus(parse_corpus(uri)).documents()) == list(open_corpus(here).documents())
    monkeypatch.setattr(type(s3), "download", None)
    corpus_fingerprint(parse_corpus(join_uri(s3.uri, "texts")))


def test_a_changed_object_is_another_corpus(s3: Storage) -> None:
    s3.write_text("texts/a.txt", TEXT)
    config = parse_corpus(join_uri(s3.uri, "texts"))
    before = corpus_fingerprint(config)
    s3.write_text("texts/a.txt", TEXT + "More.\n")
    assert corpus_fingerprint(config) != before


def test_an_empty_prefix_and_a_missing_bucket_are_refused(s3: Storage) -> None:
    with pytest.raises(DataError, match="no object with one of the endings"):
        corpus_fingerprint(parse_corpus(join_uri(s3.uri, "nothing")))
    with pytest.raises(StorageError, match="the bucket does not exist"):
        corpus_fingerprint(parse_corpus("s3://no-such-bucket/texts"))
    with pytest.raises(StorageError, match="the bucket does not exist"):
        corpus_fingerprint(parse_corpus("s3://no-such-bucket"))


def test_a_dataset_prepared_into_s3_is_read_through_the_cache(s3: Storage, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    config = PrepareConfig(corpus=parse_corpus(str(tmp_path / "a.txt")), vocab_size=300)
    manifest = prepare(config, s3)
    assert prepare(config, s3) == manifest
    key = dataset_key(manifest.fingerprint)
    folder = dataset_folder(join_uri(s3.uri, key))
    assert folder.parent == cache / "datasets"
    local = open_storage(str(tmp_path / "local"))
    assert prepare(config, local) == manifest
    for name in manifest.files:
        assert (folder / name).read_bytes() == local.read_bytes(f"{key}/{name}") == s3.read_bytes(f"{key}/{name}")
    loader = SequenceLoader(folder, "train", sequence_length=16, batch_sequences=2, seed=0)
    assert loader.tokens_in_split == manifest.splits["train"].tokens
