"""What runs first in a trial's pod: codes and signals pass through it, and the log reaches the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from podium.components.launch import job_entry
from podium.trainer.builtin.training_path import trainer_digest
from podium.trainer.trial.errors import StorageError

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the entry before a piece of Python."""

    def begin(code: str, *options: str, **env: str) -> subprocess.Popen[str]:
        log = f"file://{tmp_path}/logs/a.log"
        command = [sys.executable, "-m", "podium.components.launch.job_entry", "--log", log, *options, "--"]
        command += [sys.executable, "-S", "-c", code]
        environment = {**os.environ, **env}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return begin


@pytest.mark.parametrize(("how", "code"), [("sys.exit(0)", 0), ("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137)])
def test_the_pods_exit_code_is_the_trials(start: Start, how: str, code: int) -> None:
    process = start(f"import os, sys; {how}")
    process.communicate(timeout=60)
    assert process.returncode == code


def test_what_it_prints_is_in_the_pods_log_and_behind_earlier_attempts_in_the_store(
    start: Start, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("attempt 1\n")
    process = start("import sys; print('attempt 2', flush=True); print('oh', file=sys.stderr)")
    printed, _ = process.communicate(timeout=60)
    assert printed == "attempt 2\noh\n"
    assert log.read_text() == "attempt 1\nattempt 2\noh\n"


def test_a_log_is_in_the_store_while_the_trial_runs(start: Start, tmp_path: Path) -> None:
    process = start("import time; print('begun', flush=True); time.sleep(60)")
    log = tmp_path / "logs" / "a.log"
    deadline = time.monotonic() + 40
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert log.read_text() == "begun\n"
    process.terminate()
    process.communicate(timeout=60)


def test_a_pod_that_is_told_to_end_lets_its_trial_save(start: Start, tmp_path: Path) -> None:
    code = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / "logs" / "a.log").read_text() == "ready\nsaved\n"


def test_a_trial_that_was_told_before_it_could_listen_is_run_again(start: Start) -> None:
    process = start("print('up', flush=True); import time; time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_an_image_with_another_trainer_is_refused_as_a_config_that_cannot_be_run(start: Start) -> None:
    process = start("print('trained')", "--sources", "0" * 16)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "build the image from the conductor's commit" in printed
    process = start("print('trained')", "--sources", trainer_digest())
    assert process.communicate(timeout=60)[0] == "trained\n"


def test_each_machine_starts_its_share_of_the_ranks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; print(*[os.environ[k] for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')])"
    )
    options = ("--nodes", "2", "--ranks", "2", "--first", "localhost", "--port", "29500", "--patience", "0.1")
    process = start(code, *options, JOB_COMPLETION_INDEX="1")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, "the other machine has no address here"
    assert printed == "not all 2 pods had an address within 0.1 s\n"


def test_peers_are_the_jobs_pods_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolves(name: str) -> bool:
        asked.append(name)
        return name != "job-1-2.job-1" or asked.count(name) > 1

    monkeypatch.setattr(job_entry, "_resolves", resolves)
    assert job_entry._find_peers("job-1-0.job-1", 3, 30.0)
    assert asked == ["job-1-0.job-1", "job-1-1.job-1", "job-1-2.job-1", "job-1-2.job-1"]


def test_the_last_lines_are_tried_again_where_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from podium.trainer.trial import storage

    real, refused = storage.open_storage, []

    class Away:
        def __init__(self, uri: str) -> None:
            self._storage = real(uri)

        def read_bytes(self, key: str) -> bytes:
            return self._storage.read_bytes(key)

        def write_bytes(self, key: str, data: bytes) -> None:
            if len(refused) < 2:
                refused.append(key)
                raise StorageError("away")
            self._storage.write_bytes(key, data)

    monkeypatch.setattr(storage, "open_storage", Away)
    log = job_entry.LogToStore(f"file://{tmp_path}/a.log", tmp_path / "local")
    os.write(log.descriptor, b"the last line\n")
    log.close()
    assert refused == ["a.log", "a.log"]
    assert (tmp_path / "a.log").read_text() == "the last line\n"
