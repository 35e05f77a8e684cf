"""A Job as it stands: how it ended, why it does not run yet, and for how long it has held its devices.

All of it is read from objects that the API server sent: the Job, its pods and the namespace's warnings.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from podium.components.launch.job_cluster import Object
from podium.components.launch.job_manifest import CONTAINER
from podium.components.launch.launcher import Task, TaskEnd
from podium.trainer.trial.errors import ExitCode
from podium.trainer.trial.storage import TAIL_LINES

# How a Job stands and how it ended, read from what the API server says of it and of its pods.

DISRUPTION = "DisruptionTarget"


def condition(thing: Object, kind: str) -> Object | None:
    """A condition that is true of a Job or a pod."""
    for each in thing.get("status", {}).get("conditions") or []:
        if each["type"] == kind and each["status"] == "True":
            found: Object = each
            return found
    return None


def is_over(job: Object) -> bool:
    """Whether a Job has ended and all its pods have."""
    return condition(job, "Complete") is not None or condition(job, "Failed") is not None


def runs(job: Object) -> bool:
    """Whether all of a Job's pods run."""
    return int(job["status"].get("ready") or 0) >= int(job["spec"].get("parallelism") or 1)


def end_of(task: Task, job: Object, pods: Iterable[Object]) -> TaskEnd:
    """How a task's Job ended, by its condition and by those of its pods that are still there; seconds are not measured.

    A rank's loss ends the others, each with a code of its own; the one that ended first says why.
    """
    if condition(job, "Complete") is not None:
        return TaskEnd(task, ExitCode.CONCLUDED)
    failed = condition(job, "Failed") or {}
    said, pods = str(failed.get("message") or ""), list(pods)
    if failed.get("reason") == "DeadlineExceeded":
        reason = f"it ran into the deadline of {job['spec'].get('activeDeadlineSeconds')} s"
        return TaskEnd(task, ExitCode.OVERDUE, reason=reason)
    ends = sorted((end for pod in pods if (end := _end_of_pod(task, pod)) is not None), key=lambda end: end[:2])
    if ends:
        return ends[0][2]
    if DISRUPTION in said:
        reason = "its pod was taken away (preempted, drained or its node is gone)"
        return TaskEnd(task, ExitCode.RUN_AGAIN, reason=reason)
    code = re.search(r"exit code (\d+)", said)
    return TaskEnd(task, int(code[1])) if code else TaskEnd(task, None, reason=said)


def _end_of_pod(task: Task, pod: Object) -> tuple[int, str, TaskEnd] | None:
    """Rank (what explains most goes first), time and end of a pod that failed; None for one that did not."""
    status, name = pod["status"], pod["metadata"]["name"]
    disruption = condition(pod, DISRUPTION)
    if status.get("reason") == "Evicted":  # by the kubelet: the trial took more than it may, or the node is short
        words = f"evicted: {str(status.get('message') or '').strip()}"
        return 0, "", TaskEnd(task, ExitCode.CRASH, reason=words, pod=name)
    if disruption is not None:
        words = str(disruption.get("message") or disruption.get("reason") or "").rstrip(".")
        return 1, "", TaskEnd(task, ExitCode.RUN_AGAIN, reason=f"its pod was taken away: {words}", pod=name)
    ended = terminated(pod)
    if ended is None:
        return None
    code, when = int(ended.get("exitCode") or 0), str(ended.get("finishedAt") or "")
    if code == 0:
        return None
    message = str(ended.get("message") or "")
    end = TaskEnd(task, code if code <= 128 else 128 - code, tail=message.splitlines()[-TAIL_LINES:], pod=name)
    if ended.get("reason") == "OOMKilled":
        limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory")
        words = f"out of memory: its limit is {limit}" if limit else "out of memory"
        return 2, when, replace(end, reason=words, out_of_memory=True)
    if ended.get("reason") in ("ContainerCannotRun", "StartError"):
        return 2, when, replace(end, reason=f"its container could not start: {message}")
    return (2 if code == ExitCode.USER_ERROR else 3), when, end


def terminated(pod: Object) -> Object | None:
    """How the trial's container ended, or None where it has not, or never began."""
    for each in pod["status"].get("containerStatuses") or []:
        if each["name"] == CONTAINER and each["state"].get("terminated"):
            found: Object = each["state"]["terminated"]
            return found
    return None


def host_of(pod: Object) -> str:
    """The host name inside of a pod."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])


def image_of(pod: Object) -> str | None:
    """The image that a pod's trial runs, with its digest; None where its container has not begun."""
    for each in pod["status"].get("containerStatuses") or []:
        digest = re.search(r"sha256:[0-9a-f]{64}", each.get("imageID") or "")
        if each["name"] == CONTAINER and digest:
            name = str(pod["spec"]["containers"][0]["image"]).partition("@")[0]
            return f"{name}@{digest[0]}"
    return None


def held_seconds(pod: Object) -> float | None:
    """Seconds for which the container of a pod that has ended held its devices, by its node's clock."""
    ended = terminated(pod)
    if ended is None or not ended.get("startedAt") or not ended.get("finishedAt"):
        return None
    start, end = (datetime.fromisoformat(ended[key]) for key in ("startedAt", "finishedAt"))
    return max(0.0, (end - start).total_seconds())


# Why a Job does not run yet, in words, from the Job, its pods and the namespace's warnings.
#
# Some reasons pass by themselves (a queue, a quota, a busy node); others do not (an image that does not exist, a
# missing secret), and the launcher gives those a limited time.

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True)
class WaitReason:
    """Why something waits."""

    words: str
    stuck: bool = False
    """Whether waiting alone does not mend it."""
    queued: bool = False
    """Whether it is held back on purpose."""


def explain(job: Object, pods: Iterable[Object], warnings: Iterable[Object] = ()) -> WaitReason:
    """Why this Job's pods do not all run. `warnings` are the namespace's, of any objects."""
    queued = explain_suspension(job)
    if queued is not None:
        return queued
    own = [pod for pod in pods if _belongs(pod, job)]
    found = [_of_pod(pod, list(warnings)) for pod in own if pod["status"].get("phase") == "Pending"]
    for pending in found:
        if pending.stuck:
            return pending
    if found:
        return found[0]
    said = _messages(job["metadata"]["name"], "Job", warnings)
    if said and len(own) < int(job["spec"].get("parallelism") or 1):
        return _of_creation(said[-1])
    return WaitReason("its pods are being created" if not own else "its pods are starting")


def explain_suspension(job: Object) -> WaitReason | None:
    """Why a suspended Job is; None for one that is not."""
    if not job["spec"].get("suspend"):
        return None
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    words = f"queued by Kueue in {queue}" if queue else "suspended: somebody has to let the Job go on"
    return WaitReason(words, queued=True)


def _of_pod(pod: Object, warnings: list[Object]) -> WaitReason:
    unscheduled = next(
        (
            each
            for each in pod["status"].get("conditions") or []
            if each["type"] == "PodScheduled" and each["status"] == "False"
        ),
        None,
    )
    if unscheduled is not None:
        return _of_scheduling(str(unscheduled.get("message") or unscheduled.get("reason") or ""), pod)
    for each in pod["status"].get("containerStatuses") or []:
        waiting = each["state"].get("waiting") or {}
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if each["name"] == CONTAINER and reason in _IMAGE:
            said = message if reason == "InvalidImageName" else _pull_reason(pod, warnings) or message
            return WaitReason(f"the image {each['image']} can't be pulled: {_first_sentence(said)}", stuck=True)
        if each["name"] == CONTAINER and reason in _CONFIG:
            return WaitReason(_of_config(message), stuck=True)
    messages = _messages(pod["metadata"]["name"], "Pod", warnings)
    mounts = [message for message in messages if "mount" in message.lower()]
    if mounts:
        return WaitReason(f"a volume can't be mounted: {_first_sentence(mounts[-1])}", stuck=True)
    if messages:
        return WaitReason(f"its pod can't start: {_first_sentence(messages[-1])}", stuck=True)
    return WaitReason("its pod has a node and is being started (the first time a node pulls the image)")


def _of_scheduling(message: str, pod: Object) -> WaitReason:
    if "persistentvolumeclaim" in message or "PersistentVolumeClaim" in message:
        return WaitReason(f"its volume is missing or not bound: {_first_sentence(message)}", stuck=True)
    if "gate" in message.lower():
        return WaitReason("held back by a scheduling gate, as queues do")
    asks = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    total = re.match(r"0/(\d+) nodes are available: (.*)", message, re.DOTALL)
    if total is None:
        return WaitReason(f"no node can take it: {_first_sentence(message)}")
    details = total[2].partition(". preemption:")[0].partition(". no new claims")[0].rstrip(". ")
    reasons = [_of_node(part.strip(), asks) for part in re.split(r", (?=\d+ )", details)]
    return WaitReason(f"no node can take it, of {total[1]} in the cluster: {', '.join(reasons)}")


def _of_node(part: str, asks: Object) -> str:
    count, _, what = part.partition(" ")
    short = re.fullmatch(r"Insufficient (\S+)", what)
    if short:
        return f"{count} without enough free {short[1]} (it asks for {asks.get(short[1], 'some')})"
    if "node affinity/selector" in what:
        return f"{count} without the labels that its GPU class asks for"
    taint = re.search(r"untolerated taint(?:\(s\)|s)?:? ?(\{.*\})?", what)
    if taint:
        return f"{count} with a taint that it does not tolerate {taint[1] or ''}".rstrip()
    return f"{count} {what}"


def _of_creation(message: str) -> WaitReason:
    if "exceeded quota" in message:
        detail = re.search(r"exceeded quota: (.*)", message, re.DOTALL)
        return WaitReason(f"the namespace's quota is used up: {detail[1].strip() if detail else message}")
    account = re.search(r'serviceaccount "([^"]+)" not found', message)
    if account:
        return WaitReason(f"the service account {account[1]} does not exist", stuck=True)
    if "violates PodSecurity" in message:
        return WaitReason(f"the namespace's Pod Security refuses its pod: {message}", stuck=True)
    if "PriorityClass" in message:
        return WaitReason(f"its priority class does not exist: {_first_sentence(message)}", stuck=True)
    return WaitReason(f"its pod can't be created: {_first_sentence(message)}", stuck=True)


def _of_config(message: str) -> str:
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    if missing:
        return f"the {'secret' if missing[1] == 'secret' else 'config map'} {missing[2]} is missing"
    return f"its container can't be made: {_first_sentence(message)}"


def _pull_reason(pod: Object, warnings: list[Object]) -> str:
    said = _messages(pod["metadata"]["name"], "Pod", warnings)
    return next((message for message in reversed(said) if "Failed to pull" in message), "")


def _messages(name: str, kind: str, warnings: Iterable[Object]) -> list[str]:
    """What the warnings say about an object, the latest at the end."""
    own = [
        event
        for event in warnings
        if event["involvedObject"].get("name") == name and event["involvedObject"].get("kind") == kind
    ]
    own.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return [str(event.get("message") or "") for event in own]


def _belongs(pod: Object, job: Object) -> bool:
    return any(owner["uid"] == job["metadata"]["uid"] for owner in pod["metadata"].get("ownerReferences") or [])


def _first_sentence(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


# A task that a launcher has taken on, as its Job stands: created, queued, pending, running, over.


@dataclass
class JobState:
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
    why: WaitReason | None = None
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
    verdict: TaskEnd | None = None
    """How it counts as ended once it is gone, where it was told to end."""
    end: TaskEnd | None = None
    measured: float | None = None
    """Seconds for which its container ran, by its node."""
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
            self.end = self.verdict or TaskEnd(self.task, None, reason="somebody deleted its Job")

    def wait(self, why: WaitReason, seconds: float) -> None:
        """Try the call that is owed to it in so many seconds."""
        self.why, self.due = why, time.monotonic() + seconds

    def back_off(self, why: WaitReason | None, first: float, longest: float) -> None:
        """Try it again, later each time."""
        self.delay = min(2 * self.delay, longest) if self.delay else first
        self.why, self.due = why, time.monotonic() + self.delay

    def explain(self, why: WaitReason, now: float) -> None:
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
