"""How trials are started: what is asked of a launcher, whatever it starts them on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

TRIAL_COMMAND_VARIABLE = "PODIUM_TRIAL_COMMAND"
"""A command line that is started in place of the trainer, followed by the trial folder's URI: the seam at which a
stand-in trainer, or somebody's own, goes in. It owes the same: read config.json, write result.json last, exit codes."""
ATTEMPT_VARIABLE = "PODIUM_ATTEMPT"
"""Number of this attempt at the trial, from 1."""

USER_ERROR = 2
"""Exit code of a trial whose config can't be run: trying again would not help."""
RUN_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a trial that saved because it was told to: not a failure, run it again."""

TrialCommand = Callable[[str], list[str]]
"""From the URI of a trial's folder to the argv that trains it."""


@dataclass(frozen=True)
class Task:
    """One process to run on devices of its own."""

    name: str
    """Unique among the tasks that run at the same time."""
    argv: list[str]
    log: str
    """Key of its log in the run's storage. Later attempts are appended."""
    env: dict[str, str] = field(default_factory=dict)
    """Over the environment of the launcher."""
    devices: int = 0
    """GPUs, all for this task; 0 is a CPU, counted as one device. More than one: a process each, ranks of one group."""


@dataclass(frozen=True)
class Ended:
    """A task that is over."""

    task: Task
    code: int | None
    """Exit code, negative for the signal that ended it; None where it was lost and nobody knows."""
    seconds: float
    """Wall-clock seconds over which it held its devices."""
    tail: list[str]
    """The last 20 lines of its log."""


class Launcher(Protocol):
    """Starts tasks, at most `slots` at once, and says when they end."""

    slots: int

    def start(self, task: Task) -> None:
        """Start a task. Only called while fewer than `slots` run."""

    def poll(self, timeout_seconds: float) -> list[Ended]:
        """Tasks that ended since the last call; waits for one up to the timeout, returns at once when there is one."""

    def running(self) -> dict[str, float]:
        """Names of the tasks that run, with the seconds since each was started."""

    def stop(self, names: list[str] | None = None, *, grace_seconds: float = 30.0) -> None:
        """Ask tasks (all by default) to save and end, and end those that still run after the grace.

        Returns at once; `poll` reports them like any other. Stopping a task twice does nothing.
        """

    def close(self) -> None:
        """End what runs, with the grace of `stop`, and give everything back."""


def trial_command(uri: str) -> list[str]:
    """The command that trains the trial in the folder at `uri`: the trainer, or the stand-in that the caller named."""
    other = os.environ.get(TRIAL_COMMAND_VARIABLE)
    prefix = shlex.split(other) if other else [sys.executable, "-m", "podium.trainer", "train", "--run-spec"]
    return [*prefix, uri]
