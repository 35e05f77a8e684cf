"""Whole runs of a second: what they leave, and that an interruption leaves no trace."""

from __future__ import annotations

import json
import math
import os
import signal
import threading

import pytest
import torch

from podium.trainer.builtin import loop
from podium.trainer.builtin.checkpoint import FULL_KEYS, SIDECAR_KEYS, load_model, read_full
from podium.trainer.builtin.run import train
from podium.trainer.trial.errors import CheckpointError, ConfigError, InUseError
from podium.trainer.trial.lease import Interrupted, Lease
from podium.trainer.trial.result import Status, curve_of, read_lines
from podium.trainer.trial.storage import open_storage
from podium.trainer.trial.storage.file import FileStorage

TIMES = {"train_seconds"}
RESULT_TIMES = {
    "training_seconds",
    "evaluation_seconds",
    "compile_seconds",
    "checkpoint_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "run_name",
    "attempts",
}


def metrics_of(folder):
    lines = read_lines((folder / "metrics.jsonl").read_text())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def result_of(folder):
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in RESULT_TIMES}


def weights_of(path):
    return load_model(path)[0].state_dict()


def assert_same_run(one, other, prefix=""):
    assert metrics_of(one) == metrics_of(other)
    assert result_of(one) == result_of(other)
    for name in ("final-model", "best-model"):
        mine, theirs = (weights_of(folder / f"{prefix}{name}.safetensors") for folder in (one, other))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        sidecars = [json.loads((folder / f"{prefix}{name}.json").read_text()) for folder in (one, other)]
        assert sidecars[0] == sidecars[1]


class StopAfter:
    """A reporter that lets the process be asked to end once a step is reached."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def say(self, text):
        pass

    def progress(self, progress):
        if progress.step == self.step:
            self.act()

    def evaluated(self, point):
        pass

    def close(self):
        pass


class Crash(Exception):
    """Stands for a kill: nothing is saved on the way out."""


def crash():
    raise Crash


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def one_commit(monkeypatch):
    """A commit made while the tests run is no difference between two runs."""
    monkeypatch.setenv("PODIUM_COMMIT", "0" * 40)


@pytest.fixture
def whole(tmp_path, tiny_spec):
    """An uninterrupted run."""
    folder = tmp_path / "whole"
    train(tiny_spec(), open_storage(str(folder)))
    return folder


def test_a_run_leaves_every_file_with_its_keys(whole):
    names = {path.name for path in whole.iterdir()}
    models = {
        f"{stem}.{end}" for stem in ("best-model", "final-model", "model-step-5") for end in ("json", "safetensors")
    }
    assert models | {"ckpt-step-5.pt", "ckpt-step-10.pt", "ckpt-step-12.pt", "metrics.jsonl", "result.json"} <= names
    assert not [name for name in names if name.startswith((".tmp", "lease"))]
    assert set(read_full(whole / "ckpt-step-10.pt")) == set(FULL_KEYS)
    assert list(json.loads((whole / "final-model.json").read_text())) == list(SIDECAR_KEYS)


def test_the_result_says_what_the_metrics_say(whole):
    result = result_of(whole)
    points = curve_of(read_lines((whole / "metrics.jsonl").read_text()))
    assert [point.step for point in points] == [3, 6, 9, 12]
    assert result["status"] == "completed"
    assert (result["steps"], result["tokens"]) == (12, 12 * 8 * 16)
    assert result["passes"] == pytest.approx(12 * 8 * 16 / (749 * 16))
    assert result["final_val_loss"] == points[-1].val_loss
    assert result["final_val_perplexity"] == pytest.approx(math.exp(points[-1].val_loss))
    assert result["final_bits_per_byte"] == pytest.approx(points[-1].val_loss / math.log(2) / 2)
    assert result["best_val_loss"] == min(point.val_loss for point in points)
    assert result["last_checkpoint"] == "ckpt-step-12.pt"
    assert result["versions"]["threads"] == 1


def test_every_step_has_a_line_and_learning_happens(whole):
    lines = [line for line in metrics_of(whole) if "train_loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[0]["train_loss"] == pytest.approx(math.log(64), abs=0.1)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] - 0.2
    assert all(line["gradient_norm"] > 0 for line in lines)


def test_the_best_model_gives_the_loss_that_its_sidecar_states(whole, markov_data):
    from podium.trainer.builtin.data.loader import evaluation_batches
    from podium.trainer.builtin.evaluation.perplexity import evaluate_loss

    model, _ = load_model(whole / "best-model.safetensors")
    batches = evaluation_batches(markov_data, "validation", sequence_length=16, batch_sequences=16, sequences=32)
    found = evaluate_loss(model, batches, device="cpu")
    stated = json.loads((whole / "best-model.json").read_text())["metrics_summary"]["val_loss"]
    assert found.loss == pytest.approx(stated, abs=1e-6)


@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 11, 12])
def test_a_killed_run_goes_on_bit_for_bit(step, whole, tmp_path, tiny_spec):
    folder = open_storage(str(tmp_path / "cut"))
    with pytest.raises(Crash):
        train(tiny_spec(), folder, reporter=StopAfter(step, crash))
    train(tiny_spec(), folder, attempt=2)
    assert_same_run(whole, tmp_path / "cut")


@pytest.mark.parametrize("step", [2, 5, 6, 8])
def test_sigterm_saves_at_the_step_boundary(step, whole, tmp_path, tiny_spec):
    folder = open_storage(str(tmp_path / "cut"))
    with pytest.raises(Interrupted, match="SIGTERM"):
        train(tiny_spec(), folder, reporter=StopAfter(step, terminate))
    assert folder.exists(f"ckpt-step-{step + 1}.pt")
    assert not folder.exists("result.json")
    train(tiny_spec(), folder)
    assert_same_run(whole, tmp_path / "cut")


def test_training_seconds_are_summed_over_attempts(tmp_path, tiny_spec):
    folder = open_storage(str(tmp_path / "cut"))
    with pytest.raises(Interrupted):
        train(tiny_spec(), folder, reporter=StopAfter(7, terminate))
    first = read_full(tmp_path / "cut" / "ckpt-step-8.pt")["scheduler_state_dict"]["clock"]["training"]
    second = train(tiny_spec(), folder).training_seconds
    assert 0 < first < second
    seconds = [line["train_seconds"] for line in read_lines((tmp_path / "cut" / "metrics.jsonl").read_text())]
    assert seconds == sorted(seconds)


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path, tiny_spec):
    constant = {"schedule": {"name": "constant", "warmup_fraction": 0.0}}
    train(tiny_spec(max_steps=12, **constant), open_storage(str(tmp_path / "whole")))
    folder = open_storage(str(tmp_path / "cut"))
    train(tiny_spec(max_steps=6, **constant), folder)
    train(tiny_spec(max_steps=12, **constant), folder)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_accumulation_is_the_same_optimisation(tmp_path, tiny_spec):
    losses = []
    for name, batch in (("one", {"sequences": 8}), ("four", {"sequences": 8, "micro_batch": 2})):
        train(tiny_spec(batch=batch), open_storage(str(tmp_path / name)))
        losses.append([line["train_loss"] for line in metrics_of(tmp_path / name) if "train_loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_trained_alone_run_keeps_its_last_checkpoints(tmp_path, tiny_spec):
    checkpoint = {"every_steps": 2, "keep_last": 2}
    train(tiny_spec(checkpoint=checkpoint), open_storage(str(tmp_path)))
    assert {path.name for path in tmp_path.glob("ckpt-*")} == {"ckpt-step-10.pt", "ckpt-step-12.pt"}
    assert len(list(tmp_path.glob("model-step-*.safetensors"))) == 6


def test_a_trial_of_a_study_keeps_all_its_checkpoints(tmp_path, tiny_spec):
    spec = tiny_spec({"fingerprint": "abc"}, checkpoint={"every_steps": 2, "keep_last": 2})
    result = train(spec, open_storage(str(tmp_path)), checkpoint_prefix="checkpoints/")
    assert len(list((tmp_path / "checkpoints").glob("ckpt-*"))) == 6
    assert (result.last_checkpoint, result.fingerprint) == ("checkpoints/ckpt-step-12.pt", "abc")
    assert (tmp_path / result.final_model).is_file()


def cut_and_damage(tmp_path, tiny_spec, damage):
    folder = open_storage(str(tmp_path / "cut"))
    with pytest.raises(Crash):
        train(tiny_spec(), folder, reporter=StopAfter(11, crash))
    damage(tmp_path / "cut" / "ckpt-step-10.pt")
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(damage, whole, tmp_path, tiny_spec, capsys):
    folder = cut_and_damage(tmp_path, tiny_spec, damage)
    capsys.readouterr()
    train(tiny_spec(), folder)
    assert "warning: damaged checkpoint: ckpt-step-10.pt" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "cut")


def test_no_whole_checkpoint_is_an_error_that_names_all(tmp_path, tiny_spec):
    folder = cut_and_damage(tmp_path, tiny_spec, truncate)
    truncate(tmp_path / "cut" / "ckpt-step-5.pt")
    with pytest.raises(CheckpointError, match=r"(?s)ckpt-step-10\.pt.*ckpt-step-5\.pt"):
        train(tiny_spec(), folder)


def test_another_recipe_in_the_same_folder_is_refused(whole, tiny_spec):
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: must be 0\.01 .*got 0\.02"):
        train(tiny_spec(optimizer={"learning_rate": 0.02}), open_storage(str(whole)))


def test_a_checkpoint_of_another_architecture_is_refused(whole, tmp_path, tiny_spec):
    spec = tiny_spec(
        model={"family": "transformer", "vocab_size": 64, "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    )
    with pytest.raises(CheckpointError) as caught:
        train(spec, open_storage(str(tmp_path / "new")), resume=str(whole / "ckpt-step-10.pt"))
    assert "model.d_model: must be 32, got 16" in str(caught.value)
    assert "model.n_layers: must be 1, got 2" in str(caught.value)


def test_a_named_checkpoint_of_another_run_starts_a_new_one(whole, tmp_path, tiny_spec):
    folder = open_storage(str(tmp_path / "new"))
    train(tiny_spec(), folder, resume=str(whole / "ckpt-step-5.pt"))
    ours, theirs = metrics_of(tmp_path / "new"), metrics_of(whole)
    assert [line for line in ours if line["step"] > 5] == [line for line in theirs if line["step"] > 5]
    assert [line["step"] for line in ours if line["step"] <= 5] == [3]
    assert result_of(tmp_path / "new") == result_of(whole)


def test_an_earlier_checkpoint_of_the_same_run_cuts_what_came_after(whole, tiny_spec):
    with pytest.raises(Crash):
        train(
            tiny_spec(),
            open_storage(str(whole)),
            resume=str(whole / "ckpt-step-5.pt"),
            reporter=StopAfter(7, crash),
        )
    assert max(line["step"] for line in metrics_of(whole)) == 7
    assert not (whole / "ckpt-step-10.pt").exists()


def test_a_run_in_use_is_refused(tmp_path, tiny_spec):
    folder = open_storage(str(tmp_path / "run"))
    with Lease(folder, interval=0.05, token="somebody else"), pytest.raises(InUseError, match="in use"):
        train(tiny_spec(), folder)


def test_a_lost_lease_ends_the_run_without_a_save(tmp_path, tiny_spec, monkeypatch):
    monkeypatch.setattr(Lease, "lost", property(lambda self: True))
    folder = open_storage(str(tmp_path / "run"))
    with pytest.raises(Interrupted, match="lease"):
        train(tiny_spec(), folder)
    assert not list((tmp_path / "run").glob("ckpt-*"))


def test_a_conductor_that_is_gone_makes_the_run_save_and_end(tmp_path, tiny_spec, monkeypatch):
    from podium.trainer.trial import lease

    watch = lease.Watch

    def impatient(uri):
        assert uri == f"file://{tmp_path}/lease.json"
        return watch(uri, patience_seconds=0.02, interval=0.01)

    monkeypatch.setattr(lease, "Watch", impatient)
    folder = open_storage(str(tmp_path / "run"))
    with pytest.raises(Interrupted, match="counter stands still"):
        train(
            tiny_spec(
                {"watch": f"file://{tmp_path}/lease.json"}, max_steps=100_000, evaluation={"every_steps": 50_000}
            ),
            folder,
        )
    assert list((tmp_path / "run").glob("ckpt-*"))


def test_a_run_that_ends_before_its_first_evaluation_says_so(tmp_path, tiny_spec):
    hot = {"optimizer": {"learning_rate": 1e30}, "max_grad_norm": None, "evaluation": {"every_steps": 12}}
    result = train(tiny_spec(**hot), open_storage(str(tmp_path)))
    assert result.reason.endswith("; no validation seen: it ended before the first evaluation, at step 12")


def test_a_training_loss_that_is_not_finite_is_a_result(tmp_path, tiny_spec):
    spec = tiny_spec(optimizer={"learning_rate": 1e30}, max_grad_norm=None)
    result = train(spec, open_storage(str(tmp_path)))
    assert result.status is Status.DIVERGED
    assert result.reason.startswith("training loss not finite at step")
    assert result.final_val_loss is None
    assert result.steps < 12
    assert (tmp_path / "final-model.safetensors").is_file()
    assert metrics_of(tmp_path)[-1]["train_loss"] is None
    # a checkpoint of weights that are not numbers can serve nobody
    assert not list(tmp_path.glob(f"ckpt-step-{result.steps}.pt"))


def test_time_out_counts_training_alone(tmp_path, tiny_spec):
    result = train(tiny_spec(stop={"timeout_seconds": 1e-9}), open_storage(str(tmp_path)))
    assert (result.status, result.steps) == (Status.KILLED, 1)
    assert "time-out" in result.reason
    assert result.final_val_loss is not None


KILL = {
    "kill": {
        "criteria": [{"metric": "loss", "threshold": 0.05}],
        "span_tokens": 3 * 128,
        "min_tokens": 3 * 128,
    }
}


def test_the_kill_rule_stops_a_run_of_thirty_times_the_learning_rate(whole, tmp_path, tiny_spec):
    spec = tiny_spec({"reference_curves": [f"file://{whole}"]}, stop=KILL, optimizer={"learning_rate": 0.3})
    result = train(spec, open_storage(str(tmp_path / "hot")))
    assert result.status is Status.KILLED
    assert result.kill_tokens == result.stopped_tokens == result.tokens < 12 * 128
    assert "worse than the reference" in result.kill_detail
    assert (
        result.final_val_loss == [line for line in metrics_of(tmp_path / "hot") if "val_loss" in line][-1]["val_loss"]
    )


def test_the_kill_rule_never_stops_the_reference_itself(whole, tmp_path, tiny_spec):
    spec = tiny_spec({"reference_curves": [f"file://{whole}"]}, stop=KILL)
    assert train(spec, open_storage(str(tmp_path / "same"))).status is Status.COMPLETED


def test_a_reference_that_comes_late_kills_at_the_same_tokens(whole, tmp_path, tiny_spec):
    late = tmp_path / "late"
    hot = {"stop": KILL, "optimizer": {"learning_rate": 0.3}}
    early = train(tiny_spec({"reference_curves": [f"file://{whole}"]}, **hot), open_storage(str(tmp_path / "early")))

    def publish():
        late.mkdir()
        (late / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text())

    spec = tiny_spec({"reference_curves": [f"file://{late}"]}, **hot)
    result = train(spec, open_storage(str(tmp_path / "hot")), reporter=StopAfter(10, publish))
    assert early.stopped_tokens < result.stopped_tokens
    same = ("status", "reason", "kill_tokens", "final_val_loss", "best_val_loss", "best_step")
    assert {name: getattr(result, name) for name in same} == {name: getattr(early, name) for name in same}


def test_a_kill_that_was_due_before_the_crash_is_seen_on_resume(whole, tmp_path, tiny_spec):
    hot = {"stop": KILL, "optimizer": {"learning_rate": 0.3}}
    folder = open_storage(str(tmp_path / "hot"))
    spec = tiny_spec({"reference_curves": [f"file://{tmp_path}/nowhere"]}, **hot)
    with pytest.raises(Crash):
        train(spec, folder, reporter=StopAfter(11, crash))
    result = train(tiny_spec({"reference_curves": [f"file://{whole}"]}, **hot), folder)
    assert result.status is Status.KILLED
    assert result.kill_tokens < result.stopped_tokens == 10 * 128


def test_memory_that_runs_out_is_a_result_naming_the_batch(tmp_path, tiny_spec, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.Loop, "run", run_out)
    spec = tiny_spec(batch={"sequences": 8, "micro_batch": 4})
    result = train(spec, open_storage(str(tmp_path)))
    assert result.status is Status.OUT_OF_MEMORY
    assert "4 × 16 tokens in one forward pass (8 sequences a step)" in result.reason
    assert "batch.micro_batch 2 is the same optimisation with half of that at once" in result.reason


def test_the_clock_leaves_slow_evaluation_out(tmp_path, tiny_spec, monkeypatch):
    evaluate = loop.evaluate_loss

    def slow(*arguments, **options):
        threading.Event().wait(0.5)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate_loss", slow)
    result = train(tiny_spec(), open_storage(str(tmp_path)))
    assert result.evaluation_seconds > 2
    assert result.training_seconds < 2


def test_leftovers_of_a_killed_writer_are_removed(tmp_path, tiny_spec):
    (tmp_path / ".tmp-checkpoint-1-ckpt-step-5.pt").write_bytes(b"half")
    train(tiny_spec(), open_storage(str(tmp_path)))
    assert not list(tmp_path.glob(".tmp-*"))


class RemoteStorage(FileStorage):
    """Stands for S3: nothing in it has a path on this machine."""

    def local_path(self, key):
        return None

    def child(self, prefix):
        return RemoteStorage(self.root / prefix.rstrip("/"))


def test_a_run_in_a_remote_store_is_the_same_and_goes_on_the_same(tmp_path, tiny_spec):
    spec = tiny_spec({"fingerprint": "f"})
    prefix = "checkpoints/"
    train(spec, open_storage(str(tmp_path / "local")), run_name="x", checkpoint_prefix=prefix)
    folder = RemoteStorage(tmp_path / "remote")
    with pytest.raises(Crash):
        train(spec, folder, checkpoint_prefix=prefix, reporter=StopAfter(11, crash))
    train(spec, folder, run_name="x", checkpoint_prefix=prefix)
    assert_same_run(tmp_path / "local", tmp_path / "remote", prefix)


def test_a_trial_that_continues_another_starts_from_its_checkpoint_and_best_model(tmp_path, tiny_spec):
    train(tiny_spec(), open_storage(str(tmp_path / "first")))
    ckpt = f"file://{tmp_path}/first/ckpt-step-12.pt"
    spec = tiny_spec({"start_checkpoint": ckpt, "continues": "f1"}, max_steps=15, optimizer={"learning_rate": 1e-9})
    folder = open_storage(str(tmp_path / "second"))
    with pytest.raises(Crash):
        train(spec, folder, reporter=StopAfter(14, crash))
    result = train(spec, folder)
    assert result.steps == 15
    assert [line["step"] for line in metrics_of(tmp_path / "second") if "val_loss" in line] == [3, 6, 9, 12, 15]
    best = json.loads((tmp_path / "second" / "best-model.json").read_text())
    assert best["metrics_summary"]["val_loss"] == result.best_val_loss
    assert best["step"] == result.best_step


def test_a_conductor_less_run_sends_its_metrics_at_the_end(tmp_path, monkeypatch):
    from podium.trainer.trial import sync

    calls = []
    monkeypatch.setattr(sync, "sync_run", lambda *arguments, **options: calls.append((arguments, options)))
    folder = open_storage(str(tmp_path))
    with sync.SyncThread(folder, "sqlite:///x.db", "mine", "a"):
        assert calls == []
    assert calls == [((folder, "sqlite:///x.db", "mine"), {"run_name": "a"})]
