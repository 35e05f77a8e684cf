"""A stage's trials as Jobs on a real cluster: to their end, through a lost conductor, and cancelled without one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.study.layout import TrialKey
from podium.trainer.trial.result import Status

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BASELINE, WIDE = TrialKey("first", "baseline", 42), TrialKey("first", "wide", 42)


def test_a_stage_runs_as_jobs_and_a_second_conductor_goes_on_where_the_first_was_killed(
    on_jobs: Any, wait_for: Callable[..., Any]
) -> None:
    run = on_jobs.make(steps=1500, every=50)
    first = on_jobs.conduct(run)
    wait_for(
        "both pods train", lambda: on_jobs.is_running(2) and run.storage.exists(f"{WIDE.folder}/metrics.jsonl"), 300
    )
    first.send_signal(signal.SIGKILL)
    first.wait()
    jobs = {job["metadata"]["name"]: job["metadata"]["uid"] for job in on_jobs.get("jobs")}
    assert on_jobs.is_running(2), "they go on without their conductor"
    assert on_jobs.conduct(run).wait(600) == 0, on_jobs.said()
    assert "finished=2" in on_jobs.said()
    assert {job["metadata"]["name"]: job["metadata"]["uid"] for job in on_jobs.get("jobs")} == jobs
    for key in (BASELINE, WIDE):
        result = run.result(key)
        assert result is not None
        assert (result.status, result.attempts) == (Status.COMPLETED, 1)
        assert result.versions is not None
        assert result.versions.image is not None
        assert result.versions.image.startswith(f"{on_jobs.cluster.trainer_image}@sha256:")
        log = run.storage.read_text(key.log)
        assert "completed: all 1500 steps done" in log
        assert result.device_seconds is not None
        assert 3 < result.device_seconds < 600


def test_cancelling_ends_the_jobs_of_a_conductor_that_is_gone_after_they_saved(
    on_jobs: Any, wait_for: Callable[..., Any]
) -> None:
    run = on_jobs.make(steps=200_000, every=10_000)
    conductor = on_jobs.conduct(run)
    trains = lambda key: run.storage.exists(f"{key.folder}/metrics.jsonl")  # noqa: E731
    wait_for("both train", lambda: on_jobs.is_running(2) and trains(BASELINE) and trains(WIDE), 300)
    conductor.send_signal(signal.SIGKILL)
    conductor.wait()
    command = [sys.executable, "-c", "from podium.pipelines.cli.main import main; main()", "cancel", run.uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ended 2 Jobs of a conductor that is gone, their trials have saved" in done.stderr + done.stdout
    assert f"{run.id}: cancelled" in done.stdout
    assert on_jobs.get("jobs") == []
    assert on_jobs.get("pods") == []
    for key in (BASELINE, WIDE):
        saved = [name for name in run.storage.list(f"{key.folder}/checkpoints") if "ckpt-step-" in name]
        assert saved, "the checkpoint interval is far longer than the trial ran"
        assert not run.storage.exists(f"{key.folder}/result.json")
        assert not run.storage.exists(f"{key.folder}/lease.json")
        assert "SIGTERM" in run.storage.read_text(key.log)
