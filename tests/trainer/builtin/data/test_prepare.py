"""Preparing: the same bytes every time, complete or absent, once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from podium.trainer.builtin.data.corpus import CorpusConfig
from podium.trainer.builtin.data.loader import TokenStream
from podium.trainer.builtin.data.manifest import Manifest, check_lengths, dataset_folder, load_manifest
from podium.trainer.builtin.data.prepare import PrepareConfig, data_fingerprint, dataset_key, prepare
from podium.trainer.builtin.data.tokenizer import load_tokenizer, token_bytes
from podium.trainer.trial.errors import DataError, StorageError
from podium.trainer.trial.storage import Storage, open_storage


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    paragraphs = (f"Paragraph {number} tells of café {number * 7919 % 1009}.\nAnd on.\n\n" for number in range(4000))
    path.write_text("".join(paragraphs))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


def config(text: Path, **options: Any) -> PrepareConfig:
    return PrepareConfig(corpus=CorpusConfig(source="files", path=str(text)), **{"vocab_size": 400, **options})


def contents(store: Storage) -> dict[str, bytes]:
    return {key: store.read_bytes(key) for key in store.list()}


def test_a_prepared_dataset_is_the_corpus_token_for_token(text: Path, store: Storage) -> None:
    manifest = prepare(config(text, shard_tokens=10_000), store)
    folder = dataset_folder(f"{store.uri}/{dataset_key(manifest.fingerprint)}")
    assert load_manifest(open_storage(str(folder))) == manifest
    tokenizer, lengths = load_tokenizer(folder), token_bytes(folder)
    decoded = []
    for name, split in manifest.splits.items():
        stream = TokenStream(folder, name)
        x_BT, _ = stream.windows(np.array([0]), len(stream) - 1)
        ids = [*x_BT[0].tolist(), manifest.end_of_text]
        assert len(ids) == split.tokens
        assert int(lengths[ids].sum()) == split.bytes
        assert ids.count(manifest.end_of_text) == split.documents
        decoded += [part for part in tokenizer.decode(ids, skip_special_tokens=False).split("<|endoftext|>") if part]
    assert sum(split.bytes for split in manifest.splits.values()) == text.stat().st_size
    assert sorted("".join(decoded)) == sorted(text.read_text())
    assert len(manifest.splits["train"].shards) > 1
    assert manifest.tokenizer_size == 400


def test_preparing_again_reads_no_token_and_writes_nothing(
    text: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(config(text), store)
    before = {key: store.stamp(key) for key in store.list()}
    monkeypatch.setattr("podium.trainer.builtin.data.encode.train_tokenizer", None)
    monkeypatch.setattr(type(store), "upload", None)
    assert prepare(config(text), store) == first
    assert {key: store.stamp(key) for key in store.list()} == before


def test_the_same_corpus_gives_the_same_bytes_from_any_place_with_any_workers(text: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(text, moved / "other.txt")
    one, two = open_storage(str(tmp_path / "one")), open_storage(str(tmp_path / "two"))
    prepare(config(text, workers=1), one)
    prepare(config(moved / "other.txt", workers=2), two)
    ones, twos = contents(one), contents(two)
    assert ones.keys() == twos.keys()
    for key in ones:
        if not key.endswith("manifest.json"):
            assert ones[key] == twos[key]
    a, b = (load_manifest(place.child(next(iter(ones)).rpartition("/")[0])) for place in (one, two))
    assert a.model_copy(update={"corpus": ""}) == b.model_copy(update={"corpus": ""})


def test_the_fingerprint_is_the_folders_name_and_follows_what_decides_the_data(text: Path, store: Storage) -> None:
    base = config(text)
    fingerprint = data_fingerprint(base)
    assert len(fingerprint) == 16
    assert prepare(base, store).fingerprint == fingerprint
    assert {key.split("/")[1] for key in store.list()} == {fingerprint}
    assert data_fingerprint(config(text, workers=3)) == fingerprint
    assert data_fingerprint(config(text, vocab_size=401)) != fingerprint
    text.write_text(text.read_text() + "More.\n")
    assert data_fingerprint(base) != fingerprint


def test_a_corpus_too_small_for_its_vocabulary_keeps_the_size_asked_and_says_the_real_one(
    text: Path, store: Storage
) -> None:
    manifest = prepare(config(text, vocab_size=50_000), store)
    assert manifest.vocab_size == 50_000
    assert 257 < manifest.tokenizer_size < 50_000


@pytest.mark.parametrize("size", [256, 65537, "lots"])
def test_a_vocabulary_that_can_not_be_is_refused(text: Path, size: Any) -> None:
    with pytest.raises(ValidationError, match="vocab_size"):
        config(text, vocab_size=size)


def test_a_corpus_of_too_few_documents_is_refused_and_nothing_is_written(tmp_path: Path, store: Storage) -> None:
    (tmp_path / "a.txt").write_text("one short line\n")
    with pytest.raises(DataError, match="too few documents to split, none left for validation, test"):
        prepare(config(tmp_path / "a.txt"), store)
    (tmp_path / "b.txt").write_text(" \n \n")
    with pytest.raises(DataError, match="no text to train on"):
        prepare(config(tmp_path / "b.txt"), store)
    assert store.list() == []


def test_splits_shorter_than_a_block_are_all_named(text: Path, store: Storage) -> None:
    manifest = prepare(config(text), store)
    check_lengths(manifest, 256)
    with pytest.raises(DataError) as refused:
        check_lengths(manifest, 10_000_000)
    assert [problem.where for problem in refused.value.problems] == ["train", "validation"]
    assert "must have at least one block of 10000001 tokens" in str(refused.value)


def test_an_upload_cut_off_half_way_leaves_no_dataset_and_the_next_try_completes(
    text: Path, store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = type(store).upload

    def cut_off(self: Storage, path: Path, key: str) -> None:
        if key.startswith("validation"):
            raise StorageError("cut off")
        upload(self, path, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "upload", cut_off)
        with pytest.raises(StorageError, match="cut off"):
            prepare(config(text), store)
    folder = store.child(dataset_key(data_fingerprint(config(text))))
    with pytest.raises(DataError, match="no prepared dataset"):
        load_manifest(folder)
    prepare(config(text), store)
    other = open_storage(str(tmp_path / "other"))
    prepare(config(text), other)
    assert contents(store) == contents(other)


def test_several_processes_at_once_leave_one_whole_dataset(text: Path, store: Storage) -> None:
    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(lambda _: prepare(config(text), store), range(4)))
    assert all(manifest == manifests[0] for manifest in manifests)
    dataset_folder(f"{store.uri}/{dataset_key(manifests[0].fingerprint)}")
    assert not any("/.tmp-" in path.as_posix() for path in Path(store.uri.removeprefix("file://")).rglob("*"))


def test_two_libraries_that_disagree_at_once_are_not_mixed_silently(
    text: Path, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = type(store).create

    def late(self: Storage, key: str, data: bytes) -> bool:
        other = Manifest.model_validate_json(data).model_copy(update={"tokenizer_size": 1})
        create(self, key, other.model_dump_json().encode())
        return create(self, key, data)

    monkeypatch.setattr(type(store), "create", late)
    with pytest.raises(StorageError, match="delete this folder and prepare again"):
        prepare(config(text), store)


PREPARE = """
import sys
from podium.trainer.builtin.data.corpus import parse_corpus
from podium.trainer.builtin.data.prepare import PrepareConfig, prepare
from podium.trainer.trial.storage import open_storage
if __name__ == "__main__":
    prepare(
        PrepareConfig(corpus=parse_corpus(sys.argv[1]), vocab_size=400, workers=2), open_storage(sys.argv[2]),
        lambda what, done, total: print(what, flush=True),
    )
"""


def test_a_preparation_killed_at_any_stage_is_simply_run_again(text: Path, store: Storage, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "run.py").write_text(PREPARE)
    command = [sys.executable, str(tmp_path / "run.py"), str(text), store.uri]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    for stage in (b"training the tokenizer\n", b"tokenising\n"):
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert run.stdout is not None
        while run.stdout.readline() != stage:
            assert run.poll() is None
        children = [int(child) for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        deadline = time.monotonic() + 10
        while any(_runs(child) for child in children):
            assert time.monotonic() < deadline, "a worker outlives its killed parent"
            time.sleep(0.02)
        assert not any(key.endswith("manifest.json") for key in store.list())
    subprocess.run(command, env=environment, check=True, capture_output=True)
    clean = open_storage(str(tmp_path / "clean"))
    prepare(config(text), clean)
    assert contents(store) == contents(clean)
    assert list(scratch.glob("podium-prepare-*")) == [], "what the killed ones built is removed"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_damaged_dataset_is_refused(text: Path, store: Storage) -> None:
    manifest = prepare(config(text), store)
    key = dataset_key(manifest.fingerprint)
    shard = f"{key}/train-00000.bin"
    data = bytearray(store.read_bytes(shard))
    data[-1] ^= 1
    store.write_bytes(shard, bytes(data))
    with pytest.raises(StorageError, match=r"train-00000\.bin does not have the manifest's sha256"):
        dataset_folder(f"{store.uri}/{key}")
    store.write_bytes(f"{key}/manifest.json", b'{"fingerprint": 1}')
    with pytest.raises(DataError, match=r"manifest\.json: not a dataset's manifest: fingerprint"):
        dataset_folder(f"{store.uri}/{key}")


def test_a_fingerprint_needs_neither_numpy_nor_torch_nor_the_tokenizers_library() -> None:
    code = (
        "import sys, podium.trainer.builtin.data.prepare, podium.trainer.builtin.commands\n"
        "print([name for name in ('numpy', 'torch', 'tokenizers', 'boto3') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_temporary_folder_is_the_systems(text: Path, store: Storage) -> None:
    prepare(config(text), store)
    pattern = f"podium-prepare-*-{os.getpid()}-*"
    assert list(Path(tempfile.gettempdir()).glob(pattern)) == []
