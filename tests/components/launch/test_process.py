"""The process launcher: what runs where, what is left in the logs, and that nothing outlives its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from podium.components.launch.launcher import Task, TaskEnd, trial_command
from podium.components.launch.open import open_launcher
from podium.components.launch.process import ProcessLauncher, visible_gpus
from podium.components.launch.ranks import Group, run_ranks
from podium.components.study.run import Run
from podium.components.study.schema import Resources
from podium.trainer.trial.errors import UserError
from podium.trainer.trial.process import start_ticks
from podium.trainer.trial.storage import open_storage, read_tail


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", textwrap.dedent(code)]


def wait_all(launcher: ProcessLauncher, count: int) -> dict[str, TaskEnd]:
    ended: dict[str, TaskEnd] = {}
    deadline = time.monotonic() + 60
    while len(ended) < count and time.monotonic() < deadline:
        ended |= {each.task.name: each for each in launcher.poll(5)}
    assert len(ended) == count
    return ended


def gone(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return start_ticks(pid) is None


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.read_text()


def test_a_task_reports_its_code_its_time_and_the_end_of_its_log(tmp_path: Path) -> None:
    launcher = ProcessLauncher(open_storage(str(tmp_path)), slots=2)
    launcher.start(Task("good", python("print('done')"), "logs/good.log"))
    launcher.start(Task("bad", python("[print(n) for n in range(50)]; raise SystemExit(3)"), "logs/bad.log"))
    ended = wait_all(launcher, 2)
    launcher.close()
    assert ended["good"].code == 0
    assert ended["good"].tail == ["done"]
    assert ended["bad"].code == 3
    assert ended["bad"].tail == [str(n) for n in range(30, 50)]
    assert 0 < ended["bad"].seconds < 60
    assert (tmp_path / "logs/bad.log").read_text().splitlines()[0] == "0"


def test_poll_returns_when_a_task_ends_and_not_when_its_timeout_is_over(tmp_path: Path) -> None:
    launcher = ProcessLauncher(open_storage(str(tmp_path)), slots=1)
    started = time.monotonic()
    launcher.start(Task("t", python("pass"), "logs/t.log"))
    assert [each.code for each in launcher.poll(60)] == [0]
    assert time.monotonic() - started < 30
    assert launcher.poll(0.01) == []
    launcher.close()


def test_a_second_attempt_is_appended_to_the_log(tmp_path: Path) -> None:
    launcher = ProcessLauncher(open_storage(str(tmp_path)), slots=1)
    for attempt in ("first", "second"):
        launcher.start(Task("t", python(f"print('{attempt}')"), "logs/t.log"))
        wait_all(launcher, 1)
    launcher.close()
    assert read_tail(tmp_path / "logs/t.log") == ["first", "second"]


def test_each_task_has_its_own_gpus_and_a_cpu_task_sees_none(tmp_path: Path) -> None:
    launcher = ProcessLauncher(open_storage(str(tmp_path)), slots=3, gpus=["0", "1", "2"])
    # one write a line: two processes share a log, and print() may write the line's end by itself
    show = python(
        "import os, time; os.write(1, (os.environ['CUDA_VISIBLE_DEVICES'] + '\\n').encode()); time.sleep(0.2)"
    )
    launcher.start(Task("one", show, "logs/one.log", devices=1))
    launcher.start(Task("two", show, "logs/two.log", devices=2))
    launcher.start(Task("cpu", show, "logs/cpu.log"))
    with pytest.raises(ValueError, match="no room"):
        launcher.start(Task("four", show, "logs/four.log"))
    ended = wait_all(launcher, 3)
    assert ended["one"].tail == ["0"]
    assert ended["two"].tail == ["1,2", "1,2"], "a process for each device of the task"
    assert ended["cpu"].tail == [""]
    launcher.start(Task("again", show, "logs/again.log", devices=3))
    assert sorted(wait_all(launcher, 1)["again"].tail[0].split(",")) == ["0", "1", "2"], "devices are given back"
    launcher.close()


def test_stop_lets_a_task_save_and_ends_one_that_does_not(tmp_path: Path) -> None:
    saves = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("ready", flush=True)
        time.sleep(60)
    """
    hangs = saves.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")
    launcher = ProcessLauncher(open_storage(str(tmp_path)), slots=2)
    launcher.start(Task("saves", python(saves), "saves.log"))
    launcher.start(Task("hangs", python(hangs), "hangs.log"))
    wait_for(tmp_path / "saves.log")
    wait_for(tmp_path / "hangs.log")
    launcher.stop(grace_seconds=0.5)
    ended = wait_all(launcher, 2)
    assert ended["saves"].code == 75
    assert ended["hangs"].code == -signal.SIGKILL
    launcher.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_killed_parent_takes_its_tasks_and_their_ranks_along(tmp_path: Path) -> None:
    parent = f"""
        import sys, time
        from podium.components.launch.launcher import Task
        from podium.components.launch.process import ProcessLauncher
        from podium.trainer.trial.storage import open_storage
        launcher = ProcessLauncher(open_storage({str(tmp_path)!r}), slots=2, gpus=["0", "1"])
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        launcher.start(Task("one", [sys.executable, "-S", "-c", code], "one.log"))
        launcher.start(Task("two", [sys.executable, "-S", "-c", code], "two.log", devices=2))
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)])
    deadline = time.monotonic() + 30
    pids: list[int] = []
    while len(pids) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
        pids = [int(line) for name in ("one.log", "two.log") for line in read_tail(tmp_path / name)]
    assert len(pids) == 3
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in pids)


def test_the_first_rank_that_fails_ends_the_others_and_gives_the_code(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib, sys, time
        rank = os.environ["RANK"]
        assert os.environ["WORLD_SIZE"] == "3" and os.environ["MASTER_PORT"].isdigit()
        pathlib.Path({str(tmp_path)!r}, rank).write_text(str(os.getpid()) + "\\n")
        if rank == "1":
            sys.exit(75)
        time.sleep(60)
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_ranks(Group(3), python(code)) == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    assert all(gone(int(path.read_text())) for path in tmp_path.iterdir())


def test_ranks_that_all_end_well_give_0() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run_ranks(Group(2), python("pass")) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_machine_without_the_gpus_of_a_trial_is_refused(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    run = make_run()
    assert visible_gpus() == ["4", "5", "6"]
    for gpus, slots in ((1, 3), (2, 1), (0, 8)):
        launcher = open_launcher("process", run, "first", Resources(gpus_per_trial=gpus), parallel=8)
        assert launcher.slots == slots
    with pytest.raises(UserError, match="takes 4 GPUs, and this machine shows 3"):
        open_launcher("process", run, "first", Resources(gpus_per_trial=4), parallel=1)
    with pytest.raises(UserError, match=r"resources.nodes: must be 1 with launcher process .* got 2"):
        open_launcher("process", run, "first", Resources(nodes=2), parallel=1)
    with pytest.raises(UserError, match=r"--launcher: must be one of process, job, got 'rocket'"):
        open_launcher("rocket", run, "first", Resources(), parallel=1)


def test_a_stand_in_takes_the_trainers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PODIUM_TRIAL_COMMAND", raising=False)
    assert trial_command("file:///x") == [sys.executable, "-m", "podium.trainer", "train", "--run-spec", "file:///x"]
    monkeypatch.setenv("PODIUM_TRIAL_COMMAND", "python 'a b.py' --fast")
    assert trial_command("file:///x") == ["python", "a b.py", "--fast", "file:///x"]


def test_a_log_outside_the_file_system_is_put_whole_over_all_attempts(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write_text("logs/t.log", "before\n")
    storage.local_path = lambda key: None  # type: ignore[method-assign]  # as S3 answers
    launcher = ProcessLauncher(storage, slots=1)
    launcher.start(Task("t", python("print('after')"), "logs/t.log"))
    assert wait_all(launcher, 1)["t"].tail == ["before", "after"]
    launcher.close()
    assert (tmp_path / "logs/t.log").read_text() == "before\nafter\n"
