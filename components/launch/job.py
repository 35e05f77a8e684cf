"""Tasks as Kubernetes Jobs: created once each, followed by one watch, explained while they wait.

A successful trial costs one API call, a failed attempt three; everything else is shared by all Jobs of the step and
costs the same for ten as for a thousand. Nothing here blocks for long: what the cluster can't do now (a quota, a
restarting API server) is tried again at the next `poll`, and the task says meanwhile what it waits for.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator

from podium.components.launch.job_cluster import ApiError, Cluster, Object
from podium.components.launch.job_end import End, end_of, held_seconds, host_of, image_of
from podium.components.launch.job_held import Held
from podium.components.launch.job_manifest import CONTAINER, JobMaker
from podium.components.launch.job_names import JOB_NAME
from podium.components.launch.job_watch import JobWatch, Listed, Seen
from podium.components.launch.launcher import NOT_STARTED, TAIL_LINES, Ended, Task
from podium.components.launch.pending import Pending, explain
from podium.trainer.errors import UserError

EXPLAIN_AFTER_SECONDS = 10.0
"""A pod that takes longer to run is asked why."""
EXPLAIN_SECONDS, LONGEST_EXPLAIN_SECONDS = 15.0, 120.0
"""Between two looks at all pending pods: the first ones, and the longest while nothing changes."""
QUOTA_SECONDS = 15.0
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 15.0
"""Back-off of a call to a server that does not answer."""
OVERDUE_SECONDS = 60.0
"""How long after its grace a Job that was told to end may still be there before nobody waits for it any more."""

_log = logging.getLogger("podium.jobs")


class JobLauncher:
    """Starts tasks as Jobs of one step of a run."""

    def __init__(self, cluster: Cluster, maker: JobMaker, *, slots: int) -> None:
        """Finds the Jobs that an earlier launcher of the step left. Raises ApiError."""
        self.slots = slots
        self._cluster, self._maker = cluster, maker
        self._held: dict[str, Held] = {}
        """By the Job's name."""
        jobs, version = cluster.list_jobs(maker.run.selector)
        self._left = {job["metadata"]["name"]: job for job in jobs}
        """Jobs that nobody has started here."""
        self._watch = JobWatch(cluster, maker.run.selector, version)
        self._explain_at, self._explain_seconds = 0.0, EXPLAIN_SECONDS
        self._image: str | None = None
        self._image_asked = False

    # ---- Launcher ----

    def start(self, task: Task) -> None:
        """See Launcher. Raises UserError for a Job that the cluster refuses for good."""
        name = self._maker.run.job_name(task)
        held = self._held[name] = Held(task, name, before=task.seconds)
        job = self._left.pop(name, None)
        if job is not None:
            self._adopt(held, job)
        else:
            self._create(held)

    def poll(self, timeout_seconds: float) -> list[Ended]:
        """See Launcher."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._take_events(0.0)
            self._work()
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
        """See Launcher."""
        stem = f"{self._maker.run.stem(task)}-"
        found = [name for name, job in self._left.items() if name.startswith(stem) and not _is_going(job)]
        return max((int(name.removeprefix(stem)) for name in found), default=None)

    def clear(self) -> None:
        """See Launcher."""
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
                self._end_job(held, grace)

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

    # ---- Jobs ----

    def _create(self, held: Held) -> None:
        if self._maker.resources.nodes > 1 and self._maker.settings.queue is None and self._is_half_begun(held):
            words = "waits until another trial has all its machines, so that no two hold half of theirs"
            held.wait(Pending(words), 2.0)
            return
        try:
            job = self._cluster.create_job(self._maker.job(held.task))
        except ApiError as error:
            if error.status == 409:
                self._adopt_existing(held)
            elif error.is_quota:
                held.wait(Pending(f"the namespace's quota is used up: {error}"), QUOTA_SECONDS)
            elif error.passes:
                held.back_off(Pending(str(error)), FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
            else:
                raise self._refused(held, error) from None
            return
        held.see(job)
        self._add_service(held, job)

    def _adopt_existing(self, held: Held) -> None:
        """Take the Job of this name that is there: an earlier conductor's, which nobody listed, or our own retry's."""
        try:
            self._adopt(held, self._cluster.read_job(held.name))
        except ApiError as error:  # gone meanwhile, or no answer: create it again
            if not error.passes and error.status != 404:
                raise self._refused(held, error) from None
            held.back_off(Pending(str(error)), FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)

    def _adopt(self, held: Held, job: Object) -> None:
        held.adopted = True
        held.see(job)
        if held.over is None:
            self._add_service(held, job)

    def _add_service(self, held: Held, job: Object) -> None:
        if self._maker.resources.nodes > 1:
            held.service = self._maker.service(held.name, job["metadata"]["uid"])
            self._make_service(held)

    def _make_service(self, held: Held) -> None:
        assert held.service is not None
        try:
            self._cluster.create_service(held.service)
        except ApiError as error:
            if not error.passes:
                raise self._refused(held, error) from None
            held.back_off(Pending(str(error)), FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
            return
        held.service = None

    def _is_half_begun(self, held: Held) -> bool:
        return any(other.created and not other.runs and other.over is None for other in self._held.values())

    def _end_job(self, held: Held, grace_seconds: float) -> None:
        held.overdue = time.monotonic() + grace_seconds
        if not held.created:
            held.end = End(None)
            return
        held.deleting = True
        self._delete(held)

    def _delete(self, held: Held) -> None:
        try:
            self._cluster.delete_job(held.name)
        except ApiError as error:
            if not error.passes:
                raise self._refused(held, error) from None
            held.back_off(held.why, FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
            return
        held.deleting = False

    def _refused(self, held: Held, error: ApiError) -> UserError:
        hint = ""
        if error.status in (401, 403):
            hint = " (the rights that a conductor needs: python -m podium.components.launch.job_rbac)"
        return UserError(f"the cluster refuses the Job of {held.task.name}: {error}{hint}")

    # ---- what happens meanwhile ----

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

    def _due(self) -> list[float]:
        times = [held.due for held in self._held.values() if held.due is not None]
        times += [held.overdue for held in self._held.values() if held.overdue is not None and held.end is None]
        if any(held.is_pending for held in self._held.values()):
            times.append(max(self._explain_at, min(self._pending_times()) + EXPLAIN_AFTER_SECONDS))
        return times

    def _pending_times(self) -> list[float]:
        return [held.since for held in self._held.values() if held.is_pending]

    def _work(self) -> None:
        now = time.monotonic()
        for held in list(self._held.values()):
            if held.overdue is not None and now >= held.overdue and held.end is None:
                held.end = End(None, "it was told to end, and its Job is still there")
            if held.end is not None or (held.due is not None and now < held.due):
                continue
            held.due = None
            if not held.created:
                self._create(held)
            elif held.deleting:
                self._delete(held)
            elif held.over is not None:
                self._find_end(held, held.over)
            elif held.service is not None:
                self._make_service(held)
        self._ask_for_image()
        pending = self._pending_times()
        if pending and now >= max(self._explain_at, min(pending) + EXPLAIN_AFTER_SECONDS):
            self._explain(now)

    def _find_end(self, held: Held, job: Object) -> None:
        """How a Job that is over ended. One that succeeded while we looked on needs no questions."""
        pods: list[Object] = []
        end = end_of(job, [])
        try:
            if end.code != 0 or held.adopted:
                pods = self._cluster.list_pods(f"{JOB_NAME}={held.name}")
                end = end_of(job, pods)
        except ApiError as error:
            if error.passes:
                held.back_off(held.why, FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
                return
            _log.warning("the pods of %s can't be listed: %s", held.name, error)
        seconds = [each for pod in pods if (each := held_seconds(pod)) is not None]
        if held.adopted and seconds:
            held.measured = max(seconds)
        held.hosts = tuple(host_of(pod) for pod in pods)
        held.tail = end.message.splitlines()
        if end.pod is not None and end.code not in (0, None):
            try:
                held.tail = self._cluster.read_log(end.pod, CONTAINER, TAIL_LINES)
            except ApiError as error:
                _log.info("the log of %s can't be read: %s", end.pod, error)
        held.end = end

    def _bury(self, held: Held) -> Ended:
        end = held.end
        assert end is not None
        del self._held[held.name]
        return Ended(
            held.task,
            end.code,
            held.seconds(),
            held.tail[-TAIL_LINES:],
            reason=end.reason,
            out_of_memory=end.out_of_memory,
            hosts=held.hosts,
            image=self._image,
        )

    def _ask_for_image(self) -> None:
        running = next((held for held in self._held.values() if held.runs), None)
        if self._image_asked or running is None:
            return
        self._image_asked = True
        try:
            pods = self._cluster.list_pods(f"{JOB_NAME}={running.name}")
        except ApiError as error:
            _log.info("the image's digest is not known: %s", error)
            return
        self._image = next((image for pod in pods if (image := image_of(pod))), None)

    def _explain(self, now: float) -> None:
        """Say of every Job that does not run why: at most two calls for all of them."""
        pending = [held for held in self._held.values() if held.is_pending]
        before = {held.name: held.why for held in pending}
        try:
            pods = self._cluster.list_pods(self._maker.run.selector, "status.phase=Pending")
            # what a pod without a node waits for is in its status; all else is in events
            scheduled = [pod for pod in pods if pod["spec"].get("nodeName")]
            warnings = self._cluster.list_warnings() if scheduled or len(pods) < len(pending) else []
        except ApiError as error:
            _log.info("pending pods can't be explained: %s", error)
        else:
            for held in pending:
                assert held.job is not None
                held.explain(explain(held.job, pods, warnings), now)
                if held.is_stuck_for(self._maker.settings.start_seconds, now) and held.why is not None:
                    held.verdict = End(NOT_STARTED, held.why.words)
                    self._end_job(held, OVERDUE_SECONDS)
        changed = any(before[held.name] != held.why for held in pending)
        self._explain_seconds = (
            EXPLAIN_SECONDS if changed else min(1.5 * self._explain_seconds, LONGEST_EXPLAIN_SECONDS)
        )
        self._explain_at = now + self._explain_seconds


def _is_going(job: Object) -> bool:
    return "deletionTimestamp" in job["metadata"]
