"""What the store knows of Kubeflow's runs, and why a step failed."""

import pytest

from podium.components.step_process import FAILURE_FILE, PIPELINE_PID, step_process
from podium.components.study.layout import (
    StepFailure,
    clear_failure,
    failure_of,
    kubeflow_run_of,
    note_failure,
    note_run,
    run_of,
)
from podium.trainer.trial.errors import StorageError, UserError
from podium.trainer.trial.storage import open_storage


@pytest.fixture
def store(tmp_path, monkeypatch):
    for name in (FAILURE_FILE, PIPELINE_PID):
        monkeypatch.delenv(name, raising=False)
    return open_storage(str(tmp_path / "store"))


def test_kubeflows_run_and_ours_find_each_other_and_the_newest_is_remembered(store):
    note_run(store, "k-1", "demo-0a1b2c3d")
    note_run(store, "k-2", "demo-0a1b2c3d")
    assert (run_of(store, "k-1"), run_of(store, "k-3")) == ("demo-0a1b2c3d", None)
    assert kubeflow_run_of(store.child("runs/demo-0a1b2c3d")) == "k-2"
    assert kubeflow_run_of(store.child("runs/other")) is None


def test_a_failure_before_there_is_a_run_of_ours_is_found_by_kubeflows(store):
    note_failure(store, StepFailure("prepare_data", "user", "no such corpus"), kubeflow_run="k-1")
    assert failure_of(store, "k-1") == StepFailure("prepare_data", "user", "no such corpus")
    clear_failure(store, kubeflow_run="k-1")
    assert failure_of(store, "k-1") is None


@pytest.mark.parametrize(
    ("error", "kind"), [(UserError("wrong"), "user"), (StorageError("away"), "failed"), (ValueError("bug"), "crash")]
)
def test_a_step_leaves_why_it_failed_in_the_store(store, error, kind):
    note_run(store, "k-1", "demo-0a1b2c3d")
    with pytest.raises((SystemExit, ValueError)), step_process("train", store=store.uri, run="demo-0a1b2c3d"):
        raise error
    found = failure_of(store, "k-1")
    assert (found.step, found.kind) == ("train", kind)
    assert str(error) in found.message


def test_a_step_that_is_killed_says_nothing_whatever_an_earlier_attempt_said(store):
    note_run(store, "k-1", "demo-0a1b2c3d")
    note_failure(store, StepFailure("train", "user", "earlier"), run_id="demo-0a1b2c3d")
    with step_process("train", store=store.uri, run="demo-0a1b2c3d"):
        assert failure_of(store, "k-1") is None


def test_the_priority_of_its_jobs_reaches_the_steps_environment(store, monkeypatch):
    import os

    monkeypatch.setenv("PODIUM_PRIORITY_CLASS", "low")
    with step_process("train", store=store.uri, run="r", priority="high"):
        assert os.environ["PODIUM_PRIORITY_CLASS"] == "high"


def test_a_step_of_a_local_pipeline_writes_nothing_into_the_store(store, monkeypatch, tmp_path):
    import os

    monkeypatch.setenv(PIPELINE_PID, str(os.getppid()))
    monkeypatch.setattr("podium.components.step_process.end_with", lambda pid: None)
    with pytest.raises(SystemExit), step_process("train", store=store.uri, run="r"):
        raise UserError("wrong")
    assert store.list() == []
