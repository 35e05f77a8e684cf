"""A trial over two pods: the same losses as two processes of one machine, also when a rank is killed half way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podium.components.launch import ranks
from podium.components.launch.records import Records
from podium.components.study.layout import TrialKey
from podium.trainer.trial.storage import join_uri, open_storage

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

KEY = TrialKey("first", "baseline", 42)
KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) not in (1, os.getpid()) and b"podium.trainer" in open(f"/proc/{pid}/cmdline", "rb").read():
        os.kill(int(pid), signal.SIGKILL)
"""
STEPS, EVERY = 1200, 100


def losses(folder: Any) -> list[tuple[int, float | None, float | None]]:
    lines = [json.loads(line) for line in folder.read_text("metrics.jsonl").splitlines()]
    return [(line["step"], line.get("train_loss"), line.get("val_loss")) for line in lines]


@pytest.fixture
def two_processes(on_jobs: Any, tmp_path: Path) -> Callable[[Any], Any]:
    """Trains a run's trial by two processes of this machine, in a folder of its own."""

    def train(run: Any) -> Any:
        Records(run, "first").spec(run.trials("first")[0])
        folder = open_storage(join_uri(str(tmp_path), "local"))
        spec = {**run.storage.read_json(f"{KEY.folder}/config.json"), "watch": None}
        folder.write_json("config.json", spec)
        command = [sys.executable, ranks.__file__, "2", sys.executable, "-m", "podium.trainer", "train", "--run-spec"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, folder.uri], capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return train


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "a rank killed half way"])
def test_two_pods_train_as_two_processes_do(
    on_jobs: Any, two_processes: Callable[[Any], Any], wait_for: Callable[..., Any], killed: bool
) -> None:
    run = on_jobs.make(steps=STEPS, every=EVERY, variants="{}", resources="{nodes: 2}", retries=2)
    conductor = on_jobs.conduct(run)
    if killed:
        half = f"{KEY.folder}/checkpoints/ckpt-step-{STEPS // 2}.pt"
        wait_for("half of it is trained", lambda: run.storage.exists(half), 600)
        second = next(pod for pod in on_jobs.get("pods") if pod["spec"]["hostname"].endswith("-1"))
        name = second["metadata"]["name"]
        on_jobs.cluster.kubectl("-n", on_jobs.namespace, "exec", name, "--", "python", "-c", KILL)
    assert conductor.wait(600) == 0, on_jobs.said()
    result = run.result(KEY)
    assert result is not None, on_jobs.said()
    assert result.status.value == "completed", f"{result.reason}\n{on_jobs.said()}"
    assert result.attempts == (2 if killed else 1)
    assert result.versions is not None
    assert result.versions.world_size == 2
    assert len(on_jobs.get("services")) >= 1
    pods = {pod["spec"]["hostname"][-2:] for pod in on_jobs.get("pods")}
    assert pods == {"-0", "-1"}
    local = two_processes(run)
    assert losses(run.storage.child(KEY.folder)) == losses(local)
    other = json.loads(local.read_text("result.json"))
    print(f"two pods {result.final_val_loss!r}, two processes {other['final_val_loss']!r}, attempts {result.attempts}")
    assert result.final_val_loss == other["final_val_loss"]
