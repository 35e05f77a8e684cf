"""Tasks as Kubernetes Jobs: created once each, followed by one watch, explained while they wait.

A successful trial costs one API call, a failed attempt three; everything else is shared by all Jobs of the step and
costs the same for ten as for a thousand. Nothing here blocks for long: what the cluster can't do now is tried again at
the next `poll`, and the task says meanwhile what it waits for.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

from podium.components.launch.job_calls import JobCalls
from podium.components.launch.job_cluster import Cluster
from podium.components.launch.job_end import End
from podium.components.launch.job_held import Held
from podium.components.launch.job_look import JobLook
from podium.components.launch.job_manifest import JobMaker
from podium.components.launch.job_watch import JobWatch, Listed, Seen, slim
from podium.components.launch.launcher import NOT_STARTED, Ended, Task
from podium.components.launch.pending import Pending

OVERDUE_SECONDS = 60.0
"""How long after its grace a Job that was told to end may still be there before nobody waits for it any more."""
TURN_SECONDS = 2.0
"""How often a multi-node trial looks whether it is its turn to start."""


class JobLauncher:
    """Starts tasks as Jobs of one step of a run."""

    def __init__(self, cluster: Cluster, maker: JobMaker, *, slots: int) -> None:
        """Finds the Jobs that an earlier launcher of the step left. Raises ApiError."""
        self.slots = slots
        self._cluster, self._maker = cluster, maker
        self._calls = JobCalls(cluster, maker)
        self._look = JobLook(cluster, maker.run.selector)
        self._held: dict[str, Held] = {}
        """By the Job's name."""
        jobs, version = cluster.list_jobs(maker.run.selector)
        self._left = {job["metadata"]["name"]: slim(job) for job in jobs}
        """Jobs that nobody has started here."""
        self._watch = JobWatch(cluster, maker.run.selector, version)

    def start(self, task: Task) -> None:
        """See Launcher. Raises UserError for a Job that the cluster refuses for good."""
        name = self._maker.run.job_name(task)
        held = self._held[name] = Held(task, name, before=task.seconds)
        job = self._left.pop(name, None)
        if job is not None:
            self._calls.adopt(held, job)
        else:
            self._create(held)

    def poll(self, timeout_seconds: float) -> list[Ended]:
        """See Launcher."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._take_events(0.0)
            for held in list(self._held.values()):
                self._work_on(held)
            self._look_at_pending()
            ended = [self._bury(held) for held in list(self._held.values()) if held.end is not None]
            now = time.monotonic()
            if ended or now >= deadline:
                return ended
            self._take_events(max(0.0, min([deadline, *self._due()]) - now))

    def running(self) -> dict[str, float]:
        """See Launcher."""
        return {held.task.name: held.seconds() for held in self._held.values()}

    def waiting(self) -> dict[str, str]:
        """See Launcher."""
        return {held.task.name: held.why.words for held in self._held.values() if held.why is not None}

    def left(self, task: Task) -> int | None:
        """See Launcher. A Job that is being deleted goes on with nothing."""
        stem = f"{self._maker.run.stem(task)}-"
        found = [
            int(name.removeprefix(stem))
            for name, job in self._left.items()
            if name.startswith(stem) and "deletionTimestamp" not in job["metadata"]
        ]
        return max(found, default=None)

    def clear(self) -> None:
        """See Launcher. Raises ApiError."""
        deadline = time.monotonic() + self._maker.settings.grace_seconds + OVERDUE_SECONDS
        for name in self._left:
            self._cluster.delete_job(name)
        while self._left and time.monotonic() < deadline:
            self._take_events(1.0)

    def stop(self, names: list[str] | None = None, *, grace_seconds: float = 30.0) -> None:
        """See Launcher. A pod's own grace was fixed when it was made; the longer of the two holds."""
        grace = max(grace_seconds, self._maker.settings.grace_seconds) + OVERDUE_SECONDS
        for held in self._held.values():
            if (names is None or held.task.name in names) and held.overdue is None and held.over is None:
                self._end(held, grace, End(None))

    def close(self) -> None:
        """See Launcher."""
        self.stop()
        while self._held:
            self.poll(1.0)
        self._watch.close()
        self._cluster.close()

    def detach(self) -> None:
        """See Launcher."""
        self._held.clear()

    def _create(self, held: Held) -> None:
        several = self._maker.resources.nodes > 1 and self._maker.settings.queue is None
        if several and any(other.begins for other in self._held.values()):
            words = "waits until another trial has all its machines, so that no two hold half of theirs"
            held.wait(Pending(words), TURN_SECONDS)
        else:
            self._calls.create(held)

    def _end(self, held: Held, grace_seconds: float, verdict: End) -> None:
        held.overdue, held.verdict = time.monotonic() + grace_seconds, verdict
        if held.created:
            self._calls.delete(held)
        else:
            held.end = verdict

    def _work_on(self, held: Held) -> None:
        """Do what is owed to a Job and due."""
        now = time.monotonic()
        if held.end is None and held.overdue is not None and now >= held.overdue:
            held.end = held.verdict
        if held.end is not None or (held.due is not None and now < held.due):
            return
        held.due = None
        if not held.created:
            self._create(held)
        elif held.over is not None:
            self._calls.find_end(held)
        elif held.deleting:
            self._calls.delete(held)
        elif held.service is not None:
            self._calls.make_service(held)

    def _look_at_pending(self) -> None:
        everything = self._held.values()
        self._look.find_image(everything)
        due, now = self._look.due(everything), time.monotonic()
        if due is None or now < due:
            return
        self._look.look(everything)
        for held in everything:
            if held.why is not None and held.is_stuck_for(self._maker.settings.start_seconds, now):
                self._end(held, OVERDUE_SECONDS, End(NOT_STARTED, held.why.words))

    def _bury(self, held: Held) -> Ended:
        end = held.end
        assert end is not None
        del self._held[held.name]
        return Ended(
            held.task,
            end.code,
            held.seconds(),
            held.tail,
            reason=end.reason,
            out_of_memory=end.out_of_memory,
            hosts=held.hosts,
            image=self._look.image,
        )

    def _due(self) -> list[float]:
        """When something other than an event asks for attention."""
        times = [held.due for held in self._held.values() if held.due is not None]
        times += [held.overdue for held in self._held.values() if held.overdue is not None]
        look = self._look.due(self._held.values())
        return [*times, look] if look is not None else times

    # ---- what the watch sees ----

    def _take_events(self, timeout_seconds: float) -> None:
        """Take in what the watch has seen; waits up to the timeout for something."""
        try:
            event = self._watch.events.get(timeout=timeout_seconds) if timeout_seconds else None
            event = event or self._watch.events.get_nowait()
            while True:
                for seen in self._each(event):
                    self._see(seen)
                event = self._watch.events.get_nowait()
        except queue.Empty:
            return

    def _each(self, event: Seen | Listed) -> Iterator[Seen]:
        if isinstance(event, Seen):
            yield event
            return
        there = {job["metadata"]["name"] for job in event.jobs}
        known = [*self._left.values(), *(held.job for held in self._held.values() if held.job is not None)]
        yield from (Seen(job, deleted=True) for job in known if job["metadata"]["name"] not in there)
        yield from (Seen(job) for job in event.jobs)

    def _see(self, seen: Seen) -> None:
        name = seen.job["metadata"]["name"]
        held = self._held.get(name)
        if held is not None:
            if seen.deleted:
                held.vanish(seen.job)
            else:
                held.see(seen.job)
        elif seen.deleted:
            self._left.pop(name, None)
        elif name in self._left:
            self._left[name] = seen.job
