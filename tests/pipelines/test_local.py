"""The real KFP pipeline in child processes, with the steps' logic replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from podium.components.study.design import Selection
from podium.components.study.load import load_study
from podium.pipelines.local import PipelineError, run_local, start_local
from podium.trainer.trial.errors import UserError
from podium.trainer.trial.storage import open_storage

STUDY = """
name: demo
question: Does a text with "quotes", 'more', `backticks`, $(touch oops), {{x}} and é arrive unchanged?
data: {vocab_size: 512, corpus: {source: builtin}}
config:
  model: {family: transformer, d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 4}
  evaluation: {every_steps: 5}
  checkpoint: {every_steps: 5}
stages:
  ranking: {budget: {steps: 10}, seeds: 1, promotion: {policy: always}}
  finals.1: {budget: {steps: 20}, seeds: 2, promotion: {policy: always}}
"""


@pytest.fixture
def run(tmp_path):
    """As much of a run as starting its pipeline takes."""
    store = open_storage(str(tmp_path / "store"))
    return SimpleNamespace(
        id="demo-0a1b2c3d", study=load_study(STUDY), store_uri=store.uri, storage=store.child("runs/demo-0a1b2c3d")
    )


def test_every_step_runs_once_in_order_with_what_it_needs(run, fake_steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = fake_steps()
    run_local(run, selection=Selection(parallel=2), env=steps.env)
    assert steps.names() == [
        "prepare_data", "shakedown", "train", "select", "train", "select", "evaluate", "register", "report"
    ]  # fmt: skip
    (_, _, (text, profile, store, budget, gpus, launcher, selection, compiled, _)) = steps.calls()[0]
    assert load_study(text, profile=profile) == run.study
    assert (store, budget, gpus, launcher) == (run.store_uri, "", "ranking=0,finals.1=0", "process")
    assert compiled == gpus
    assert Selection.from_json(selection) == Selection(parallel=2)
    assert [arguments[2] for name, _, arguments in steps.calls() if name in ("train", "select")] == [
        "ranking", "ranking", "finals.1", "finals.1"
    ]  # fmt: skip
    assert all(arguments[:2] == (run.id, run.store_uri) for name, _, arguments in steps.calls()[1:])
    assert "SUCCESS" in run.storage.read_text("logs/pipeline.log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steps-0", "store"], "nothing lies beside the store"
    assert not run.storage.exists("lease.json")


def test_a_text_that_kfp_would_take_for_a_placeholder_travels_by_the_store(run, fake_steps):
    run.study = load_study(STUDY.replace("{{x}}", "{{$.inputs}}"))
    steps = fake_steps(shakedown="fail")
    run_local(run, env=steps.env)
    (uri, *_) = steps.calls()[0][2]
    assert uri.startswith(f"{run.store_uri}/studies/")
    assert load_study(open_storage(run.store_uri).read_text(uri.removeprefix(f"{run.store_uri}/"))) == run.study


@pytest.mark.parametrize("decision", ["stop", "await", "partial", "cancelled"])
def test_a_stage_that_does_not_promote_ends_the_pipeline_without_an_error(run, fake_steps, decision):
    steps = fake_steps({"ranking": decision})
    run_local(run, env=steps.env)
    assert steps.names() == ["prepare_data", "shakedown", "train", "select"]


def test_a_shakedown_that_fails_ends_the_pipeline_before_anything_is_paid_for(run, fake_steps):
    steps = fake_steps(shakedown="fail")
    run_local(run, env=steps.env)
    assert steps.names() == ["prepare_data", "shakedown"]


def test_a_users_mistake_in_a_step_is_told_as_one(run, fake_steps):
    with pytest.raises(UserError, match=r"^corpus: must be a file, got 'nowhere'$"):
        run_local(run, env=fake_steps(prepare_data="user error").env)
    log = run.storage.read_text("logs/pipeline.log")
    assert "prepare_data: corpus: must be a file, got 'nowhere'" in log
    assert 'raise UserError("corpus' not in log, "no traceback for what the user can mend"


def test_a_bug_in_a_step_names_the_step_and_keeps_its_traceback_in_the_log(run, fake_steps):
    with pytest.raises(PipelineError, match=r"train failed: ValueError: a bug of ours\n.log: file://.*pipeline.log"):
        run_local(run, env=fake_steps(train="bug").env)
    assert "Traceback" in run.storage.read_text("logs/pipeline.log")


def test_a_step_that_is_killed_fails_with_the_last_lines_of_the_log(run, fake_steps):
    with pytest.raises(PipelineError, match="train"):
        run_local(run, env=fake_steps(train="killed").env)


def test_stopping_ends_the_step_that_runs(run, fake_steps):
    steps = fake_steps(train="sleep")
    with start_local(run, env=steps.env) as pipeline:
        pid = wait_for_step(steps, "train")
        assert pipeline.poll() is None
        pipeline.stop(grace_seconds=20)
        assert pipeline.poll() not in (None, 0)
    assert_gone(pid)


STARTER = """
import sys
from types import SimpleNamespace
from podium.components.study.load import load_study
from podium.pipelines.local import start_local
from podium.trainer.trial.storage import open_storage
store = open_storage(sys.argv[1])
run = SimpleNamespace(id="demo", study=load_study(sys.argv[2]), store_uri=store.uri, storage=store.child("runs/demo"))
start_local(run).wait()
"""


@pytest.mark.parametrize("victim", ["starter", "pipeline"])
def test_killing_the_starter_or_the_pipeline_alone_ends_every_process_below(fake_steps, tmp_path, victim):
    steps = fake_steps(train="sleep")
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "store"), STUDY], env={**os.environ, **steps.env}
    )
    try:
        step = wait_for_step(steps, "train")
        pipeline = parent_of(parent_of(step))  # a step is started through a shell
        assert parent_of(pipeline) == starter.pid
        os.kill(starter.pid if victim == "starter" else pipeline, signal.SIGKILL)
        assert_gone(step)
        assert_gone(pipeline)
    finally:
        starter.kill()
        starter.wait()


def wait_for_step(steps, name, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [pid for called, pid, _ in steps.calls() if called == name]
        if found:
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"{name} was not called within {seconds} s: {steps.names()}")


def assert_gone(pid, seconds=5):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} lives {seconds} s later")


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
