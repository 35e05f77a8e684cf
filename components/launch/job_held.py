"""A task that a launcher has taken on, as its Job stands: created, queued, pending, running, over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime

from podium.components.launch.job_cluster import Object
from podium.components.launch.job_end import End, is_over, runs
from podium.components.launch.launcher import Task
from podium.components.launch.pending import Pending, explain_suspension


@dataclass
class Held:
    """One attempt at a task. Times are this process's monotonic seconds."""

    task: Task
    name: str
    """The Job's."""
    before: float = 0.0
    """Seconds for which it held its devices before it was followed here."""
    job: Object | None = None
    """As it was last seen (`job_watch.slim`); None until it is created."""
    adopted: bool = False
    """Whether somebody else created it."""
    since: float = field(default_factory=time.monotonic)
    """When it began to wait."""
    started: float | None = None
    """When it was seen to run; None while it does not."""
    why: Pending | None = None
    """Why it waits, as far as known."""
    stuck: float | None = None
    """Since when it waits for what waiting does not mend."""
    due: float | None = None
    """When the call that is owed to it is tried (again)."""
    delay: float = 0.0
    service: Object | None = None
    """A Service that is still to be made."""
    deleting: bool = False
    """Whether its deletion is still to be asked for."""
    overdue: float | None = None
    """When nobody waits for its end any more; None while it was not told to end."""
    over: Object | None = None
    """The Job that has ended, until it is known how."""
    verdict: End | None = None
    """How it counts as ended once it is gone, where it was told to end."""
    end: End | None = None
    measured: float | None = None
    """Seconds for which its container ran, by its node."""
    tail: list[str] = field(default_factory=list)
    hosts: tuple[str, ...] = ()

    @property
    def created(self) -> bool:
        """Whether its Job is there."""
        return self.job is not None

    @property
    def runs(self) -> bool:
        """Whether all its pods run."""
        return self.started is not None

    @property
    def is_pending(self) -> bool:
        """Whether its pods should run and do not."""
        return (
            self.job is not None
            and self.started is None
            and self.over is None
            and self.end is None
            and self.overdue is None
            and not self.job["spec"].get("suspend")
        )

    @property
    def begins(self) -> bool:
        """Whether its Job is there and not all its pods run yet."""
        return self.created and not self.runs and self.over is None and self.end is None

    def seconds(self) -> float:
        """Seconds for which it has held its devices, waiting not counted."""
        if self.measured is not None:
            return self.measured
        if self.started is None:
            return self.before
        return self.before + time.monotonic() - self.started

    def see(self, job: Object) -> None:
        """Take in the Job as it now stands."""
        if self.job is None:  # it exists now: nothing keeps it from being asked for
            self.why, self.due, self.delay = None, None, 0.0
        self.job = job
        if is_over(job):
            if self.over is None:
                self._pause()
                if not self.before:  # it ran and ended between two looks
                    self.measured = _status_seconds(job)
                self.over = job
            return
        if runs(job):
            if self.started is None:
                self.started, self.why, self.stuck = time.monotonic(), None, None
            return
        was_running = self.started is not None
        self._pause()
        queued = explain_suspension(job)
        if queued is not None or was_running:
            self.why, self.since, self.stuck = queued, time.monotonic(), None
        elif self.why is not None and self.why.queued:
            self.why, self.since = None, time.monotonic()

    def vanish(self, job: Object) -> None:
        """Take in that the Job is gone."""
        self._pause()
        if self.over is None and is_over(job):
            self.see(job)
        if self.over is None and self.end is None:
            self.end = self.verdict or End(None, "somebody deleted its Job")

    def wait(self, why: Pending, seconds: float) -> None:
        """Try the call that is owed to it in so many seconds."""
        self.why, self.due = why, time.monotonic() + seconds

    def back_off(self, why: Pending | None, first: float, longest: float) -> None:
        """Try it again, later each time."""
        self.delay = min(2 * self.delay, longest) if self.delay else first
        self.why, self.due = why, time.monotonic() + self.delay

    def explain(self, why: Pending, now: float) -> None:
        """Take in why it waits."""
        self.why = why
        self.stuck = (self.stuck or now) if why.stuck else None

    def is_stuck_for(self, seconds: float, now: float) -> bool:
        """Whether what it waits for has not been mended for so long."""
        return self.stuck is not None and now - self.stuck >= seconds

    def _pause(self) -> None:
        if self.started is not None:
            self.before += time.monotonic() - self.started
            self.started = None


def _status_seconds(job: Object) -> float | None:
    status = job["status"]
    if not status.get("startTime") or not status.get("completionTime"):
        return None
    start, end = (datetime.fromisoformat(status[key]) for key in ("startTime", "completionTime"))
    return max(0.0, (end - start).total_seconds())
