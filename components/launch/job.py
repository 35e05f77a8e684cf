"""Tasks as Kubernetes Jobs: created once each, followed by one watch, explained while they wait.

A successful trial costs one API call, a failed attempt three; everything else is shared by all Jobs of the step and
costs the same for ten as for a thousand. Nothing here blocks for long: what the cluster can't do now is tried again at
the next `poll`, and the task says meanwhile what it waits for.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Collection, Iterator
from dataclasses import replace

from podium.components.launch.job_cluster import ApiError, Cluster, JobList, JobUpdate, JobWatch, Object, slim
from podium.components.launch.job_manifest import CONTAINER, JOB_NAME, JobMaker
from podium.components.launch.job_state import JobState, WaitReason, end_of, explain, held_seconds, host_of, image_of
from podium.components.launch.launcher import Task, TaskEnd
from podium.trainer.trial.errors import ExitCode, UserError
from podium.trainer.trial.storage import TAIL_LINES

# What is asked of the API server for one Job at a time, and what a refusal means.
#
# What passes (a quota, a server that restarts) is owed and tried again; what does not is the user's to mend.

QUOTA_SECONDS = 15.0
"""Between two tries of a Job for which the namespace has no quota."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 15.0
"""Back-off of a call to a server that does not answer."""

_log = logging.getLogger("podium.jobs")


class JobCalls:
    """Creates, finds, deletes and questions Jobs. Each call leaves in `held` what came of it, or when it is due again.

    All raise UserError for what the cluster refuses for good.
    """

    def __init__(self, cluster: Cluster, maker: JobMaker) -> None:
        self._cluster, self._maker = cluster, maker

    def create(self, state: JobState) -> None:
        """Create the Job; where it is there already, adopt it: an earlier conductor's, or our own lost answer's."""
        try:
            job = self._cluster.create_job(self._maker.job(state.task))
        except ApiError as error:
            if error.status == 409:
                self._adopt_existing(state)
            elif error.is_quota:
                state.wait(WaitReason(f"the namespace's quota is used up: {error}"), QUOTA_SECONDS)
            else:
                self._later(state, error)
            return
        state.see(slim(job))
        self._owe_service(state)

    def adopt(self, state: JobState, job: Object) -> None:
        """Follow a Job that somebody else created."""
        state.adopted = True
        state.see(job)
        self._owe_service(state)

    def make_service(self, state: JobState) -> None:
        """Create the Service that is owed."""
        assert state.service is not None
        try:
            self._cluster.create_service(state.service)
            state.service = None
        except ApiError as error:
            self._later(state, error)

    def delete(self, state: JobState) -> None:
        """Have the Job go; its pods are told to end."""
        state.deleting = True
        try:
            self._cluster.delete_job(state.name)
            state.deleting = False
        except ApiError as error:
            self._later(state, error)

    def find_end(self, state: JobState) -> None:
        """How a Job that is over ended. One that succeeded while we looked on needs no questions."""
        assert state.over is not None
        pods: list[Object] = []
        end = end_of(state.task, state.over, [])
        if end.code != 0 or state.adopted:
            try:
                pods = self._cluster.list_pods(f"{JOB_NAME}={state.name}")
            except ApiError as error:
                self._later(state, error)
                return
            end = end_of(state.task, state.over, pods)
        seconds = [each for pod in pods if (each := held_seconds(pod)) is not None]
        if state.adopted and seconds:
            state.measured = max(seconds)
        state.hosts = tuple(host_of(pod) for pod in pods)
        if end.pod is not None and end.code not in (0, None):
            try:
                end = replace(end, tail=self._cluster.read_log(end.pod, CONTAINER, TAIL_LINES))
            except ApiError as error:
                _log.info("the log of %s can't be read: %s", end.pod, error)
        state.end = end

    def _adopt_existing(self, state: JobState) -> None:
        try:
            self.adopt(state, slim(self._cluster.read_job(state.name)))
        except ApiError as error:
            if error.status == 404:  # gone meanwhile: create it again
                state.back_off(state.why, FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
            else:
                self._later(state, error)

    def _owe_service(self, state: JobState) -> None:
        if self._maker.resources.nodes > 1 and state.over is None and state.job is not None:
            state.service = self._maker.service(state.name, state.job["metadata"]["uid"])
            self.make_service(state)

    def _later(self, state: JobState, error: ApiError) -> None:
        if not error.passes:
            hint = ""
            if error.status in (401, 403):
                hint = " (the rights that a conductor needs: python -m podium.components.launch.job_cluster)"
            raise UserError(f"the cluster refuses the Job of {state.task.name}: {error}{hint}") from None
        state.back_off(state.why or WaitReason(str(error)), FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)


# Looks at all of a step's pods together: why some do not run, and which image the others do.

AFTER_SECONDS = 10.0
"""A pod that takes longer to run is asked why."""
FIRST_SECONDS, LONGEST_SECONDS = 15.0, 120.0
"""Between two looks at the pending pods: at first, and at most while nothing changes."""

_pod_log = logging.getLogger("podium.jobs")


class JobLook:
    """At most two calls a look, whatever the number of Jobs, and no look while every pod runs."""

    def __init__(self, cluster: Cluster, selector: str) -> None:
        self._cluster, self._selector = cluster, selector
        self._next, self._pause = 0.0, FIRST_SECONDS
        self._asked_for_image = False
        self.image: str | None = None
        """The image that the step's pods run, with its digest; None until one runs."""

    def due(self, states: Collection[JobState]) -> float | None:
        """When the next look is due; None while nothing is pending."""
        since = [each.since for each in states if each.is_pending]
        return max(self._next, min(since) + AFTER_SECONDS) if since else None

    def look(self, states: Collection[JobState]) -> None:
        """Say of every Job that does not run why."""
        pending = [each for each in states if each.is_pending]
        before = {each.name: each.why for each in pending}
        now = time.monotonic()
        try:
            pods = self._cluster.list_pods(self._selector, "status.phase=Pending")
            # what a pod without a node waits for is in its status; all else is in events
            scheduled = [pod for pod in pods if pod["spec"].get("nodeName")]
            warnings: list[Object] = self._cluster.list_warnings() if scheduled or len(pods) < len(pending) else []
        except ApiError as error:
            _pod_log.info("pending pods can't be explained: %s", error)
        else:
            for each in pending:
                assert each.job is not None
                each.explain(explain(each.job, pods, warnings), now)
        changed = any(before[each.name] != each.why for each in pending)
        self._pause = FIRST_SECONDS if changed else min(1.5 * self._pause, LONGEST_SECONDS)
        self._next = now + self._pause

    def find_image(self, states: Collection[JobState]) -> None:
        """Ask the first Job that runs, or has run, for its image's digest: the others run the same."""
        running = next((each for each in states if each.runs or each.over is not None), None)
        if self._asked_for_image or running is None:
            return
        self._asked_for_image = True
        try:
            pods = self._cluster.list_pods(f"{JOB_NAME}={running.name}")
        except ApiError as error:
            _pod_log.info("the image's digest is not known: %s", error)
            return
        self.image = next((image for pod in pods if (image := image_of(pod))), None)


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
        self._states: dict[str, JobState] = {}
        """By the Job's name."""
        jobs, version = cluster.list_jobs(maker.run.selector)
        self._left = {job["metadata"]["name"]: slim(job) for job in jobs}
        """Jobs that nobody has started here."""
        self._watch = JobWatch(cluster, maker.run.selector, version)

    def start(self, task: Task) -> None:
        """See Launcher. Raises UserError for a Job that the cluster refuses for good."""
        name = self._maker.run.job_name(task)
        state = self._states[name] = JobState(task, name, before=task.seconds)
        job = self._left.pop(name, None)
        if job is not None:
            self._calls.adopt(state, job)
        else:
            self._create(state)

    def poll(self, timeout_seconds: float) -> list[TaskEnd]:
        """See Launcher."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._take_events(0.0)
            for state in list(self._states.values()):
                self._work_on(state)
            self._look_at_pending()
            ended = [self._bury(state) for state in list(self._states.values()) if state.end is not None]
            now = time.monotonic()
            if ended or now >= deadline:
                return ended
            self._take_events(max(0.0, min([deadline, *self._due()]) - now))

    def running(self) -> dict[str, float]:
        """See Launcher."""
        return {state.task.name: state.seconds() for state in self._states.values()}

    def waiting(self) -> dict[str, str]:
        """See Launcher."""
        return {state.task.name: state.why.words for state in self._states.values() if state.why is not None}

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
        for state in self._states.values():
            if (names is None or state.task.name in names) and state.overdue is None and state.over is None:
                self._end(state, grace, TaskEnd(state.task, None))

    def close(self) -> None:
        """See Launcher."""
        self.stop()
        while self._states:
            self.poll(1.0)
        self._watch.close()
        self._cluster.close()

    def detach(self) -> None:
        """See Launcher."""
        self._states.clear()

    def _create(self, state: JobState) -> None:
        several = self._maker.resources.nodes > 1 and self._maker.settings.queue is None
        if several and any(other.begins for other in self._states.values()):
            words = "waits until another trial has all its machines, so that no two hold half of theirs"
            state.wait(WaitReason(words), TURN_SECONDS)
        else:
            self._calls.create(state)

    def _end(self, state: JobState, grace_seconds: float, verdict: TaskEnd) -> None:
        state.overdue, state.verdict = time.monotonic() + grace_seconds, verdict
        if state.created:
            self._calls.delete(state)
        else:
            state.end = verdict

    def _work_on(self, state: JobState) -> None:
        """Do what is owed to a Job and due."""
        now = time.monotonic()
        if state.end is None and state.overdue is not None and now >= state.overdue:
            state.end = state.verdict
        if state.end is not None or (state.due is not None and now < state.due):
            return
        state.due = None
        if not state.created:
            self._create(state)
        elif state.over is not None:
            self._calls.find_end(state)
        elif state.deleting:
            self._calls.delete(state)
        elif state.service is not None:
            self._calls.make_service(state)

    def _look_at_pending(self) -> None:
        everything = self._states.values()
        self._look.find_image(everything)
        due, now = self._look.due(everything), time.monotonic()
        if due is None or now < due:
            return
        self._look.look(everything)
        for state in everything:
            if state.why is not None and state.is_stuck_for(self._maker.settings.start_seconds, now):
                self._end(state, OVERDUE_SECONDS, TaskEnd(state.task, ExitCode.NOT_STARTED, reason=state.why.words))

    def _bury(self, state: JobState) -> TaskEnd:
        end = state.end
        assert end is not None
        del self._states[state.name]
        return replace(end, seconds=state.seconds(), hosts=state.hosts, image=self._look.image)

    def _due(self) -> list[float]:
        """When something other than an event asks for attention."""
        times = [state.due for state in self._states.values() if state.due is not None]
        times += [state.overdue for state in self._states.values() if state.overdue is not None]
        look = self._look.due(self._states.values())
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

    def _each(self, event: JobUpdate | JobList) -> Iterator[JobUpdate]:
        if isinstance(event, JobUpdate):
            yield event
            return
        there = {job["metadata"]["name"] for job in event.jobs}
        known = [*self._left.values(), *(state.job for state in self._states.values() if state.job is not None)]
        yield from (JobUpdate(job, deleted=True) for job in known if job["metadata"]["name"] not in there)
        yield from (JobUpdate(job) for job in event.jobs)

    def _see(self, seen: JobUpdate) -> None:
        name = seen.job["metadata"]["name"]
        state = self._states.get(name)
        if state is not None:
            if seen.deleted:
                state.vanish(seen.job)
            else:
                state.see(seen.job)
        elif seen.deleted:
            self._left.pop(name, None)
        elif name in self._left:
            self._left[name] = seen.job
