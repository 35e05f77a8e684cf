"""Programs that run on after the command that started them, found again by process id and start time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from place import Place, SetupError, say


def _file(place: Place, name: str) -> Path:
    return place.state / "run" / f"{name}.json"


def _started(pid: int) -> str | None:
    """When a process was started, in clock ticks; None if there is none. Tells a process id that is used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def pid_of(place: Place, name: str) -> int | None:
    """The process id of a daemon that lives."""
    try:
        record = json.loads(_file(place, name).read_text())
    except (OSError, ValueError):
        return None
    pid = record.get("pid")
    return pid if pid and _started(pid) == record["started"] else None


def known(place: Place) -> list[str]:
    """Every daemon that was ever started here, dead or alive."""
    return sorted(path.stem for path in (place.state / "run").glob("*.json"))


def start(place: Place, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> None:
    """Start a daemon, unless it runs. Its output goes to logs/<name>.log."""
    if pid_of(place, name) is not None:
        return
    log = place.state / "logs" / f"{name}.log"
    for folder in (log.parent, _file(place, name).parent):
        folder.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    record = {"pid": process.pid, "started": _started(process.pid), "argv": argv, "env": dict(env or {})}
    _file(place, name).write_text(json.dumps(record, indent=1))


def start_again(place: Place, name: str) -> None:
    """Start a daemon that was stopped, as it was started before."""
    record = json.loads(_file(place, name).read_text())
    start(place, name, record["argv"], record["env"])


def stop(place: Place, name: str, *, grace_seconds: float = 15.0, kill: bool = False) -> None:
    """End a daemon and wait until it is gone. `kill`: without asking."""
    pid = pid_of(place, name)
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while pid_of(place, name) is not None:
        if time.monotonic() > deadline:
            say(f"{name} does not end by itself: killed")
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + grace_seconds
        _reap(pid)
        time.sleep(0.05)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except OSError:  # another command started it
        return


def wait(place: Place, what: str, ready: Callable[[], bool], *, seconds: float = 90.0, daemon: str = "") -> None:
    """Wait until `ready`. Raises SetupError after `seconds`, or when the daemon dies, with the end of its log."""
    deadline = time.monotonic() + seconds
    while not ready():
        died = bool(daemon) and pid_of(place, daemon) is None
        if died or time.monotonic() > deadline:
            log = place.state / "logs" / f"{daemon}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if daemon and log.exists() else ""
            problem = f"{daemon} ended" if died else f"not within {seconds:.0f} s: {what}"
            raise SetupError(f"{problem}{f'; the end of {log}:' if tail else ''}\n{tail}".rstrip())
        time.sleep(0.1)


def output_of(argv: list[str], *, env: Mapping[str, str] | None = None, stdin: str | None = None) -> str:
    """What a command prints. Raises SetupError with what it said when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **(env or {})}, input=stdin)
    if done.returncode:
        raise SetupError(f"{' '.join(argv[:6])} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
