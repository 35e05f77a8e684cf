"""The process that forks trials: what it reports, and that nothing of it outlives whom it belongs to."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podium.components.launch.launcher import Task, TaskEnd, trial_command
from podium.components.launch.process import ProcessLauncher, serves
from podium.trainer.trial.process import start_ticks
from podium.trainer.trial.storage import open_storage, read_tail

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="trials are forked under Linux only")


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[ProcessLauncher]:
    made = ProcessLauncher(open_storage(str(tmp_path)), slots=4)
    yield made
    made.close()


def wait_all(launcher: ProcessLauncher, count: int) -> dict[str, TaskEnd]:
    ended: dict[str, TaskEnd] = {}
    deadline = time.monotonic() + 60
    while len(ended) < count and time.monotonic() < deadline:
        ended |= {each.task.name: each for each in launcher.poll(5)}
    return ended


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_only_training_by_the_trainer_itself_is_forked() -> None:
    assert serves(trial_command("file:///x"))
    assert not serves([sys.executable, "-m", "podium.trainer", "evaluate"]), "what is measured has a process of its own"
    assert not serves([sys.executable, "stand_in.py", "file:///x"])


def test_forked_tasks_end_as_processes_of_their_own_would(launcher: ProcessLauncher, tmp_path: Path) -> None:
    train = [sys.executable, "-m", "podium.trainer", "train"]
    launcher.start(Task("help", [*train, "--help"], "help.log"))
    launcher.start(Task("refused", [*train, "--run-spec", str(tmp_path / "nothing")], "refused.log"))
    ended = wait_all(launcher, 2)
    assert ended["help"].code == 0
    assert "--run-spec" in (tmp_path / "help.log").read_text()
    assert ended["refused"].code == 2
    assert "no such config file" in " ".join(ended["refused"].tail)
    assert "Traceback" not in (tmp_path / "refused.log").read_text()


def test_a_fork_that_dies_is_reported_by_its_signal_and_one_whose_parent_dies_is_lost(
    launcher: ProcessLauncher, tmp_path: Path
) -> None:
    # A trainer that waits: its config is a pipe that nobody writes to.
    for name in ("killed", "lost"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "config.json")
        launcher.start(Task(name, trial_command(f"file://{tmp_path / name}"), f"{name}.log"))
    wait_until(lambda: all("process" in " ".join(read_tail(tmp_path / f"{name}.log")) for name in ("killed", "lost")))
    pids = {name: int(read_tail(tmp_path / f"{name}.log")[0].split()[-1]) for name in ("killed", "lost")}
    os.kill(pids["killed"], signal.SIGKILL)
    assert wait_all(launcher, 1)["killed"].code == -signal.SIGKILL
    os.kill(parent_of(pids["lost"]), signal.SIGKILL)
    assert wait_all(launcher, 1)["lost"].code is None
    wait_until(lambda: start_ticks(pids["lost"]) is None)
    # The launcher goes on without it.
    launcher.start(Task("after", trial_command(f"file://{tmp_path / 'nothing'}"), "after.log"))
    assert wait_all(launcher, 1)["after"].code == 2
