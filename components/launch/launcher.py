"""How trials are started: what is asked of a launcher, whatever it starts them on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from podium.components.study.layout import ATTEMPTS, WAITING
from podium.trainer.trial.errors import StorageError
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import Storage

TRIAL_COMMAND_VARIABLE = "PODIUM_TRIAL_COMMAND"
"""A command line that is started in place of the trainer, followed by the trial folder's URI: the seam at which a
stand-in trainer, or somebody's own, goes in. It owes the same: read config.json, write result.json last, exit codes."""
ATTEMPT_VARIABLE = "PODIUM_ATTEMPT"
"""Number of this attempt at the trial, from 1."""

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
    attempt: int = 1
    """Number of this attempt at the task."""
    identity: str = ""
    """What makes it this task and no other by the same name: a fingerprint. With the attempt it names a Job."""
    folder: str = ""
    """Key of the folder that it works in, from the run's; empty where it has none of its own."""
    seconds: float = 0.0
    """Seconds for which this attempt has held its devices already, where it is one that `Launcher.left` told of."""
    labels: dict[str, str] = field(default_factory=dict)
    """Variant, seed and the like, for who looks at a cluster."""


@dataclass(frozen=True)
class TaskEnd:
    """A task that is over."""

    task: Task
    code: int | None
    """Exit code, negative for the signal that ended it; None where it was lost and nobody knows."""
    seconds: float = 0.0
    """Wall-clock seconds over which it held its devices."""
    tail: list[str] = field(default_factory=list)
    """The last 20 lines of its log."""
    reason: str = ""
    """How it ended in words, where more is known than the code."""
    out_of_memory: bool = False
    """Whether it was ended for using more memory than it was given."""
    pod: str | None = None
    """The pod that decided how it ended, where that still exists: its log says more."""
    hosts: tuple[str, ...] = ()
    """Hosts of its own that have ended with it: a lease that one of them holds is a dead one's."""
    image: str | None = None
    """The image that it ran, with its digest."""


class Launcher(Protocol):
    """Starts tasks, at most `slots` at once, and says when they end."""

    slots: int

    def start(self, task: Task) -> None:
        """Start a task. Only called while fewer than `slots` run."""

    def poll(self, timeout_seconds: float) -> list[TaskEnd]:
        """Tasks that ended since the last call; waits for one up to the timeout, returns at once when there is one."""

    def running(self) -> dict[str, float]:
        """Names of the tasks that were started and are not over, with the seconds that each has held its devices."""

    def waiting(self) -> dict[str, str]:
        """Names of the started tasks that do not run yet, with the reason in words."""

    def left(self, task: Task) -> int | None:
        """The newest attempt at this task that an earlier launcher started and nobody saw end; None where none is.

        Starting that attempt means following it.
        """

    def clear(self) -> None:
        """End what an earlier launcher left running of this step, and wait until it has."""

    def stop(self, names: list[str] | None = None, *, grace_seconds: float = 30.0) -> None:
        """Ask tasks (all by default) to save and end, and end those that still run after the grace.

        Returns at once; `poll` reports them like any other. Stopping a task twice does nothing.
        """

    def close(self) -> None:
        """End what runs, with the grace of `stop`, and give everything back."""

    def detach(self) -> None:
        """Let go of what runs: somebody else follows it now. What can't run alone ends with `close` all the same."""


def trial_command(uri: str) -> list[str]:
    """The command that trains the trial in the folder at `uri`: the trainer, or the stand-in that the caller named."""
    other = os.environ.get(TRIAL_COMMAND_VARIABLE)
    prefix = shlex.split(other) if other else [sys.executable, "-m", "podium.trainer", "train", "--run-spec"]
    return [*prefix, uri]


# What a run's trials wait for, in words: printed when it changes, and kept in `waiting.json` for `podium status`.

SHOWN = 5
"""Trials that are named with each reason."""


class WaitingNotes:
    """Writes down what the trials of a step wait for."""

    def __init__(self, storage: Storage) -> None:
        """`storage` is the run's."""
        self._storage = storage
        self._told: dict[str, str] = {}

    def tell(self, waiting: Mapping[str, str]) -> None:
        """Note who waits for what now. Says nothing where nothing has changed."""
        now = dict(sorted(waiting.items()))
        if now == self._told:
            return
        news: dict[str, list[str]] = {}
        for name, why in now.items():
            if self._told.get(name) != why:
                news.setdefault(why, []).append(name)
        for why, names in news.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            print(f"{', '.join(names[:SHOWN])}{more}: {why}", flush=True)
        self._told = now
        with suppress(StorageError):  # words for a reader are worth no trial
            if now:
                self._storage.write_json(WAITING, now)
            else:
                self._storage.delete(WAITING)


# What a trial's attempts cost: `attempts.json` in its folder, kept by the conductor.
#
# Device time is money whether or not an attempt ended well, so it is written down while the attempt runs: a conductor
# that is killed loses at most `BEAT_SECONDS` of it. A result's cost is always computed from this file, so filling it in
# twice gives the same.

BEAT_SECONDS = 30.0


class Attempt(Section):
    """One start of a trial."""

    seconds: float
    """Wall-clock seconds over which it held its devices, as far as known."""
    ended: bool = False
    """False while it runs, and for ever where its conductor was killed."""
    code: int | None = None
    """Its exit code; None where nobody saw it end."""
    crashed: bool = False
    """Whether it counts as a failure of its own."""


class Attempts(Section):
    """All starts of a trial, in order."""

    attempts: list[Attempt] = []

    @property
    def seconds(self) -> float:
        """Seconds over all attempts, lost ones included."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def crashes(self) -> int:
        """Attempts that failed by themselves; an interruption is none."""
        return sum(attempt.crashed for attempt in self.attempts)

    def begin(self) -> Attempts:
        """With one more attempt, which has just started."""
        return Attempts(attempts=[*self.attempts, Attempt(seconds=0.0)])

    def last(self, attempt: Attempt) -> Attempts:
        """With the last attempt as it now stands."""
        return Attempts(attempts=[*self.attempts[:-1], attempt])


def read_attempts(storage: Storage, folder: str) -> Attempts:
    """The attempts at the trial in `folder` of the run; none where it was never started."""
    return Attempts.model_validate(storage.read_json(f"{folder}/{ATTEMPTS}", {}))


def write_attempts(storage: Storage, folder: str, attempts: Attempts) -> None:
    """Replace the file."""
    storage.write_text(f"{folder}/{ATTEMPTS}", attempts.model_dump_json() + "\n")
