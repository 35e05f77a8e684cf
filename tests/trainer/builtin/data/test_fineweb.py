"""Shards that somebody else made: found, named by a manifest, read in place or fetched through a bounded cache."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from podium.trainer.builtin.config import RunSpec, load_config
from podium.trainer.builtin.data import shard_cache
from podium.trainer.builtin.data.corpora import fineweb
from podium.trainer.builtin.data.corpus import CorpusConfig, parse_corpus
from podium.trainer.builtin.data.loader import SequenceLoader, evaluation_batches
from podium.trainer.builtin.data.manifest import HEADER_BYTES, Manifest, Shard, dataset_folder
from podium.trainer.builtin.data.prepare import PrepareConfig, data_fingerprint, dataset_key, prepare
from podium.trainer.builtin.data.shard_cache import ShardCache
from podium.trainer.builtin.data.shards import ShardWriter
from podium.trainer.builtin.evaluation.metrics import EvaluationRequest
from podium.trainer.builtin.evaluation.run import evaluate_checkpoint
from podium.trainer.builtin.run import train
from podium.trainer.trial.errors import ConfigError, DataError
from podium.trainer.trial.storage import open_storage

TOKENS = 600


def write_shard(folder: Path, name: str, tokens: np.ndarray) -> Path:
    with ShardWriter(folder, "made") as writer:
        writer.append(tokens.astype(np.uint16))
    return (folder / "made-00000.bin").rename(folder / name)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three training shards and one for validation, of 600 tokens each; token i of all is i."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        name = f"fineweb_train_{number + 1:06d}.bin"
        write_shard(folder, name, np.arange(number * TOKENS, (number + 1) * TOKENS))
    write_shard(folder, "fineweb_val_000000.bin", np.arange(5000, 5000 + TOKENS))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "FIRST_WAIT_SECONDS", 0.01)
    return tmp_path / "cache" / "shards"


def prepared(corpus: CorpusConfig, store: Path) -> tuple[Path, Manifest]:
    manifest = prepare(PrepareConfig(corpus=corpus, vocab_size=50304), open_storage(str(store)))
    return dataset_folder(f"file://{store}/{dataset_key(manifest.fingerprint)}"), manifest


def stream_of(folder: Path, steps: int, world_size: int = 1) -> np.ndarray:
    loaders = [
        SequenceLoader(
            folder, "train", sequence_length=16, batch_sequences=8, seed=1, rank=rank, world_size=world_size,
            shuffle=False,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        return np.concatenate([loader.next_batch()[0] for _ in range(steps) for loader in loaders])
    finally:
        for loader in loaders:
            loader.close()


def test_a_folder_of_shards_is_a_dataset_that_copies_nothing(shards: Path, tmp_path: Path) -> None:
    folder, manifest = prepared(parse_corpus(f"fineweb:{shards}"), tmp_path / "store")
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json"]
    assert (manifest.vocab_size, manifest.tokenizer_size, manifest.end_of_text) == (50304, 50257, 50256)
    assert {name: split.tokens for name, split in manifest.splits.items()} == {"train": 1800, "validation": 600}
    assert manifest.split("train").bytes is None
    assert manifest.tokenizer_sha256 is None
    stream = stream_of(folder, 14)
    assert np.array_equal(stream.reshape(-1), np.arange(14 * 128) % (112 * 16))  # end to end, then from the start


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_stream_is_the_same_on_any_number_of_ranks(shards: Path, tmp_path: Path, world_size: int) -> None:
    folder, _ = prepared(parse_corpus(f"fineweb:{shards}"), tmp_path / "store")
    assert np.array_equal(stream_of(folder, 20, world_size), stream_of(folder, 20))


def test_validation_is_the_first_tokens_of_its_shard(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fineweb, "VALIDATION_TOKENS", 320)
    folder, manifest = prepared(parse_corpus(f"fineweb:{shards}"), tmp_path / "store")
    assert manifest.split("validation").tokens == 321
    batches = list(evaluation_batches(folder, "validation", sequence_length=16, batch_sequences=32))
    assert np.array_equal(batches[0][1].reshape(-1), np.arange(5001, 5321))


def test_the_first_shards_are_taken_and_the_tokens_decide_the_identity(shards: Path, tmp_path: Path) -> None:
    two = CorpusConfig(source="fineweb", path=str(shards), shards=2)
    assert prepared(two, tmp_path / "store")[1].split("train").tokens == 1200
    moved = tmp_path / "moved"
    shards.rename(moved)
    fingerprint = data_fingerprint(PrepareConfig(corpus=two.model_copy(update={"path": str(moved)}), vocab_size=50304))
    (manifest,) = (tmp_path / "store" / "data").iterdir()
    assert manifest.name == fingerprint
    write_shard(moved, "fineweb_train_000002.bin", np.arange(TOKENS))
    other = PrepareConfig(corpus=CorpusConfig(source="fineweb", path=str(moved), shards=2), vocab_size=50304)
    assert data_fingerprint(other) != fingerprint


def test_missing_shards_and_misfits_are_named(shards: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no training shards there: .* got no \.bin file"):
        prepared(parse_corpus(f"fineweb:{empty}"), tmp_path / "store")
    with pytest.raises(DataError, match="has 3 training shards, got shards: 9"):
        prepared(CorpusConfig(source="fineweb", path=str(shards), shards=9), tmp_path / "store")
    with pytest.raises(DataError, match="GPT-2's tokens take at least 50257, got 16000"):
        prepare(
            PrepareConfig(corpus=parse_corpus(f"fineweb:{shards}"), vocab_size=16000), open_storage(str(tmp_path / "s"))
        )
    (shards / "fineweb_val_000000.bin").unlink()
    with pytest.raises(DataError, match=r"no validation shards there: .* got fineweb_train_000001\.bin"):
        prepared(parse_corpus(f"fineweb:{shards}"), tmp_path / "store")
    with pytest.raises(ValueError, match="shards are fineweb's, got shards: 2 with source 'builtin'"):
        CorpusConfig(source="builtin", shards=2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({0: 7}, "magic number must be 20240520, got 7"),
        ({1: 2}, "version must be 1, got 2"),
        ({2: 700}, "the header says 700 tokens, the file holds 600"),
    ],
)
def test_a_shard_that_is_none_is_refused_by_name_before_anything_is_written(
    shards: Path, tmp_path: Path, wrong: dict[int, int], words: str
) -> None:
    path = shards / "fineweb_train_000002.bin"
    content = bytearray(path.read_bytes())
    for place, value in wrong.items():
        content[4 * place : 4 * place + 4] = int(value).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"fineweb_train_000002.bin: {words}"):
        prepared(parse_corpus(f"fineweb:{shards}"), tmp_path / "store")
    assert not (tmp_path / "store" / "data").exists()


class Hub(BaseHTTPRequestHandler):
    """What the hub answers to whoever lists a dataset and fetches files of it."""

    folder: Path
    asked: list[str]
    refusals: int
    commit = "c0ffee" * 6 + "beef"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/"):
            content = json.dumps(self._about()).encode()
            headers = {"Content-Type": "application/json"}
        else:
            file = self.folder / Path(path).name
            if not file.is_file():  # the library asks for more than it is told to
                self.send_error(404)
                return
            if type(self).refusals > 0 and body:
                type(self).refusals -= 1
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if body:
                type(self).asked.append(file.name)
            content = file.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            headers = {"X-Repo-Commit": self.commit, "ETag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _about(self) -> dict[str, object]:
        siblings = []
        for path in sorted(self.folder.iterdir()):
            content = path.read_bytes()
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": path.name, "size": len(content), "blobId": "b", "lfs": lfs})
        return {"id": fineweb.HUB_REPOSITORY, "sha": self.commit, "siblings": siblings, "private": False, "tags": []}

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    handler = type("OneHub", (Hub,), {"folder": shards, "asked": [], "refusals": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(fineweb, "HUB_SHARDS", 3)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_hubs_shards_are_listed_without_being_read_and_fetched_as_training_needs_them(
    hub: type[Hub], tmp_path: Path, cache: Path
) -> None:
    folder, manifest = prepared(parse_corpus("fineweb"), tmp_path / "store")
    assert manifest.source == f"hub://{fineweb.HUB_REPOSITORY}@{Hub.commit}"
    assert hub.asked == []
    assert np.array_equal(stream_of(folder, 3).reshape(-1), np.arange(3 * 128))
    # the one at hand and the next, not the third; and nothing twice
    assert sorted(hub.asked) == ["fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    stream_of(folder, 14)
    assert sorted(hub.asked) == [f"fineweb_train_{number:06d}.bin" for number in (1, 2, 3)]
    assert not list(cache.glob(".tmp-*"))


def test_a_hub_that_stumbles_is_asked_again(hub: type[Hub], tmp_path: Path) -> None:
    folder, _ = prepared(parse_corpus("fineweb"), tmp_path / "store")
    hub.refusals = 2
    assert np.array_equal(stream_of(folder, 1).reshape(-1), np.arange(128))


def test_another_content_than_was_prepared_is_refused(hub: type[Hub], tmp_path: Path, shards: Path) -> None:
    folder, _ = prepared(parse_corpus("fineweb"), tmp_path / "store")
    write_shard(shards, "fineweb_train_000001.bin", np.arange(TOKENS) + 1)
    with pytest.raises(DataError, match=r"fineweb_train_000001\.bin does not have the sha256 that its place gave"):
        stream_of(folder, 1)


def test_a_hub_that_is_not_there_says_what_else_can_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"can't be listed .* fineweb:PATH"):
        prepared(parse_corpus("fineweb"), tmp_path / "store")


def shard_of(path: Path) -> Shard:
    return Shard(file=path.name, tokens=(path.stat().st_size - HEADER_BYTES) // 2, sha256=None)


def test_the_cache_keeps_its_bound_and_drops_what_was_not_used_for_longest(shards: Path, cache: Path) -> None:
    size = HEADER_BYTES + 2 * TOKENS
    held = ShardCache(f"file://{shards}", limit_bytes=3 * size)
    paths = sorted(shards.glob("*.bin"))
    first, second, third, fourth = (held.path(shard_of(path)) for path in paths)
    assert not first.exists()
    assert all(path.exists() for path in (second, third, fourth))
    os.utime(second)
    os.utime(third, ns=(0, 0))
    held.path(shard_of(paths[0]))
    assert second.exists()
    assert not third.exists()
    assert sum(path.stat().st_size for path in cache.glob("*.bin")) <= 3 * size


def test_what_is_at_hand_and_next_stays_even_beyond_the_bound(shards: Path, cache: Path) -> None:
    held = ShardCache(f"file://{shards}", limit_bytes=1)
    one, two = (held.path(shard_of(path)) for path in sorted(shards.glob("*.bin"))[:2])
    assert one.exists()
    assert two.exists()


def test_those_who_ask_at_once_fetch_once(hub: type[Hub], tmp_path: Path) -> None:
    _, manifest = prepared(parse_corpus("fineweb"), tmp_path / "store")
    shard = manifest.split("train").shards[0]
    assert manifest.source is not None
    caches = [ShardCache(manifest.source) for _ in range(4)]
    threads = [threading.Thread(target=cache.path, args=(shard,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.asked == ["fineweb_train_000001.bin"]


def test_a_shuffled_order_needs_room_for_all_shards(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = prepared(parse_corpus("fineweb"), tmp_path / "store")
    monkeypatch.setenv("PODIUM_SHARD_CACHE", "4k")
    with pytest.raises(ConfigError, match=r"'shuffled' reads all shards all the time: 6672 bytes, .* allows 4000"):
        SequenceLoader(folder, "train", sequence_length=16, batch_sequences=8, seed=1)
    monkeypatch.setenv("PODIUM_SHARD_CACHE", "much")
    with pytest.raises(ConfigError, match="PODIUM_SHARD_CACHE: must be a whole number"):
        SequenceLoader(folder, "train", sequence_length=16, batch_sequences=8, seed=1)


def test_a_speedrun_trains_on_shards_and_leaves_null_what_a_tokenizer_would_tell(shards: Path, tmp_path: Path) -> None:
    for path in shards.glob("*.bin"):
        tokens = np.fromfile(path, dtype="<u2", offset=HEADER_BYTES) % 64
        write_shard(shards, path.name, tokens)
    folder, _ = prepared(parse_corpus(f"fineweb:{shards}"), tmp_path / "store")
    config = load_config(
        {
            "model": {"family": "speedrun", "vocab_size": 50304, "d_model": 8, "n_layers": 1, "n_heads": 1},
            "data": {"sequence_length": 16, "order": "sequential"},
            "optimizer": {"name": "muon", "learning_rate": 0.01},
            "schedule": {"name": "warmdown", "warmup_fraction": 0.0, "warmdown_steps": 2},
            "batch": {"sequences": 4, "micro_batch": 2},
            "max_steps": 4,
            "evaluation": {"every_steps": 4, "sequences": 8},
            "checkpoint": {"every_steps": 4},
            "runtime": {"device": "cpu", "threads": 1, "untimed_steps": 2},
        }
    )
    result = train(RunSpec(config=config, dataset=f"file://{folder}"), open_storage(str(tmp_path / "run")))
    assert result.status == "completed"
    assert result.final_val_loss is not None
    assert result.final_bits_per_byte is None
    assert result.passes == pytest.approx(4 * 64 / 1792)
    assert result.untimed_seconds is not None
    assert result.training_seconds is not None
    assert result.untimed_seconds > 0
    # of the two timed steps alone
    assert result.tokens_per_second == pytest.approx(2 * 64 / result.training_seconds)
    request = EvaluationRequest(
        checkpoint=str(tmp_path / "run"), output=str(tmp_path / "evaluation"), data=str(folder), device="cpu",
        skip=("latency", "throughput"),
    )  # fmt: skip
    evaluate_checkpoint(request)
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["dev_loss"] == pytest.approx(np.log(50304), abs=10)
    assert metrics["dev_bits_per_byte"] is metrics["tokenizer_sha256"] is metrics["smallbench_mean_accuracy"] is None
    assert metrics["unmeasured"]["smallbench_mean_accuracy"] == "the dataset has no tokenizer (--tokenizer gives one)"
    assert metrics["unmeasured"]["test_loss"] == "the dataset has no split 'test'"
