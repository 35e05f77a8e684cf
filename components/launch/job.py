"""Tasks as Kubernetes Jobs: created once each, followed by one watch, explained while they wait.

A successful trial costs one API call, a failed attempt three; everything else is shared by all Jobs of the step and
costs the same for ten as for a thousand. Nothing here blocks for long: what the cluster can't do now is tried again at
the next `poll`, and the task says meanwhile what it waits for.
"""

from __future__ import annotations

import logging
import queue
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from podium.components.launch.job_cluster import ApiError, Cluster, JobWatch, Listed, Object, Seen, slim
from podium.components.launch.job_manifest import CONTAINER, JOB_NAME, JobMaker
from podium.components.launch.launcher import Ended, Task
from podium.trainer.trial.errors import ExitCode, UserError
from podium.trainer.trial.storage import TAIL_LINES

# How a Job stands and how it ended, read from what the API server says of it and of its pods.

DISRUPTION = "DisruptionTarget"


@dataclass(frozen=True)
class End:
    """How a Job ended."""

    code: int | None
    """Exit code as `launcher.Ended` has it; None where nobody knows."""
    reason: str = ""
    """In words; empty where the code says it all."""
    out_of_memory: bool = False
    pod: str | None = None
    """The pod that decided it, if it is still there: its log says more."""
    message: str = ""
    """The last lines that this pod wrote, as far as its status has them."""


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


def end_of(job: Object, pods: Iterable[Object]) -> End:
    """How a Job that is over ended, by its condition and by those of its pods that are still there.

    A rank's loss ends the others, each with a code of its own; the one that ended first says why.
    """
    if condition(job, "Complete") is not None:
        return End(0)
    failed = condition(job, "Failed") or {}
    said, pods = str(failed.get("message") or ""), list(pods)
    if failed.get("reason") == "DeadlineExceeded":
        return End(ExitCode.OVERDUE, f"it ran into the deadline of {job['spec'].get('activeDeadlineSeconds')} s")
    ends = sorted((end for pod in pods if (end := _end_of_pod(pod)) is not None), key=lambda end: end[:2])
    if ends:
        return ends[0][2]
    if DISRUPTION in said:
        return End(ExitCode.RUN_AGAIN, "its pod was taken away (preempted, drained or its node is gone)")
    code = re.search(r"exit code (\d+)", said)
    return End(int(code[1])) if code else End(None, said)


def _end_of_pod(pod: Object) -> tuple[int, str, End] | None:
    """Rank (what explains most goes first), time and end of a pod that failed; None for one that did not."""
    status, name = pod["status"], pod["metadata"]["name"]
    disruption = condition(pod, DISRUPTION)
    if status.get("reason") == "Evicted":  # by the kubelet: the trial took more than it may, or the node is short
        return 0, "", End(1, f"evicted: {str(status.get('message') or '').strip()}", pod=name)
    if disruption is not None:
        words = str(disruption.get("message") or disruption.get("reason") or "").rstrip(".")
        return 1, "", End(ExitCode.RUN_AGAIN, f"its pod was taken away: {words}", pod=name)
    ended = terminated(pod)
    if ended is None:
        return None
    code, when = int(ended.get("exitCode") or 0), str(ended.get("finishedAt") or "")
    if code == 0:
        return None
    end = End(code if code <= 128 else 128 - code, pod=name, message=str(ended.get("message") or ""))
    if ended.get("reason") == "OOMKilled":
        limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory")
        words = f"out of memory: its limit is {limit}" if limit else "out of memory"
        return 2, when, End(end.code, words, out_of_memory=True, pod=name, message=end.message)
    if ended.get("reason") in ("ContainerCannotRun", "StartError"):
        return 2, when, End(end.code, f"its container could not start: {end.message}", pod=name)
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
class Pending:
    """Why something waits."""

    words: str
    stuck: bool = False
    """Whether waiting alone does not mend it."""
    queued: bool = False
    """Whether it is held back on purpose."""


def explain(job: Object, pods: Iterable[Object], warnings: Iterable[Object] = ()) -> Pending:
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
    return Pending("its pods are being created" if not own else "its pods are starting")


def explain_suspension(job: Object) -> Pending | None:
    """Why a suspended Job is; None for one that is not."""
    if not job["spec"].get("suspend"):
        return None
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    words = f"queued by Kueue in {queue}" if queue else "suspended: somebody has to let the Job go on"
    return Pending(words, queued=True)


def _of_pod(pod: Object, warnings: list[Object]) -> Pending:
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
            return Pending(f"the image {each['image']} can't be pulled: {_first_sentence(said)}", stuck=True)
        if each["name"] == CONTAINER and reason in _CONFIG:
            return Pending(_of_config(message), stuck=True)
    messages = _messages(pod["metadata"]["name"], "Pod", warnings)
    mounts = [message for message in messages if "mount" in message.lower()]
    if mounts:
        return Pending(f"a volume can't be mounted: {_first_sentence(mounts[-1])}", stuck=True)
    if messages:
        return Pending(f"its pod can't start: {_first_sentence(messages[-1])}", stuck=True)
    return Pending("its pod has a node and is being started (the first time a node pulls the image)")


def _of_scheduling(message: str, pod: Object) -> Pending:
    if "persistentvolumeclaim" in message or "PersistentVolumeClaim" in message:
        return Pending(f"its volume is missing or not bound: {_first_sentence(message)}", stuck=True)
    if "gate" in message.lower():
        return Pending("held back by a scheduling gate, as queues do")
    asks = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    total = re.match(r"0/(\d+) nodes are available: (.*)", message, re.DOTALL)
    if total is None:
        return Pending(f"no node can take it: {_first_sentence(message)}")
    details = total[2].partition(". preemption:")[0].partition(". no new claims")[0].rstrip(". ")
    reasons = [_of_node(part.strip(), asks) for part in re.split(r", (?=\d+ )", details)]
    return Pending(f"no node can take it, of {total[1]} in the cluster: {', '.join(reasons)}")


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


def _of_creation(message: str) -> Pending:
    if "exceeded quota" in message:
        detail = re.search(r"exceeded quota: (.*)", message, re.DOTALL)
        return Pending(f"the namespace's quota is used up: {detail[1].strip() if detail else message}")
    account = re.search(r'serviceaccount "([^"]+)" not found', message)
    if account:
        return Pending(f"the service account {account[1]} does not exist", stuck=True)
    if "violates PodSecurity" in message:
        return Pending(f"the namespace's Pod Security refuses its pod: {message}", stuck=True)
    if "PriorityClass" in message:
        return Pending(f"its priority class does not exist: {_first_sentence(message)}", stuck=True)
    return Pending(f"its pod can't be created: {_first_sentence(message)}", stuck=True)


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

    def create(self, held: Held) -> None:
        """Create the Job; where it is there already, adopt it: an earlier conductor's, or our own lost answer's."""
        try:
            job = self._cluster.create_job(self._maker.job(held.task))
        except ApiError as error:
            if error.status == 409:
                self._adopt_existing(held)
            elif error.is_quota:
                held.wait(Pending(f"the namespace's quota is used up: {error}"), QUOTA_SECONDS)
            else:
                self._later(held, error)
            return
        held.see(slim(job))
        self._owe_service(held)

    def adopt(self, held: Held, job: Object) -> None:
        """Follow a Job that somebody else created."""
        held.adopted = True
        held.see(job)
        self._owe_service(held)

    def make_service(self, held: Held) -> None:
        """Create the Service that is owed."""
        assert held.service is not None
        try:
            self._cluster.create_service(held.service)
            held.service = None
        except ApiError as error:
            self._later(held, error)

    def delete(self, held: Held) -> None:
        """Have the Job go; its pods are told to end."""
        held.deleting = True
        try:
            self._cluster.delete_job(held.name)
            held.deleting = False
        except ApiError as error:
            self._later(held, error)

    def find_end(self, held: Held) -> None:
        """How a Job that is over ended. One that succeeded while we looked on needs no questions."""
        assert held.over is not None
        pods: list[Object] = []
        end = end_of(held.over, [])
        if end.code != 0 or held.adopted:
            try:
                pods = self._cluster.list_pods(f"{JOB_NAME}={held.name}")
            except ApiError as error:
                self._later(held, error)
                return
            end = end_of(held.over, pods)
        seconds = [each for pod in pods if (each := held_seconds(pod)) is not None]
        if held.adopted and seconds:
            held.measured = max(seconds)
        held.hosts = tuple(host_of(pod) for pod in pods)
        held.tail = end.message.splitlines()[-TAIL_LINES:]
        if end.pod is not None and end.code not in (0, None):
            try:
                held.tail = self._cluster.read_log(end.pod, CONTAINER, TAIL_LINES)
            except ApiError as error:
                _log.info("the log of %s can't be read: %s", end.pod, error)
        held.end = end

    def _adopt_existing(self, held: Held) -> None:
        try:
            self.adopt(held, slim(self._cluster.read_job(held.name)))
        except ApiError as error:
            if error.status == 404:  # gone meanwhile: create it again
                held.back_off(held.why, FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
            else:
                self._later(held, error)

    def _owe_service(self, held: Held) -> None:
        if self._maker.resources.nodes > 1 and held.over is None and held.job is not None:
            held.service = self._maker.service(held.name, held.job["metadata"]["uid"])
            self.make_service(held)

    def _later(self, held: Held, error: ApiError) -> None:
        if not error.passes:
            hint = ""
            if error.status in (401, 403):
                hint = " (the rights that a conductor needs: python -m podium.components.launch.job_cluster)"
            raise UserError(f"the cluster refuses the Job of {held.task.name}: {error}{hint}") from None
        held.back_off(held.why or Pending(str(error)), FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)


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

    def due(self, held: Collection[Held]) -> float | None:
        """When the next look is due; None while nothing is pending."""
        since = [each.since for each in held if each.is_pending]
        return max(self._next, min(since) + AFTER_SECONDS) if since else None

    def look(self, held: Collection[Held]) -> None:
        """Say of every Job that does not run why."""
        pending = [each for each in held if each.is_pending]
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

    def find_image(self, held: Collection[Held]) -> None:
        """Ask the first Job that runs, or has run, for its image's digest: the others run the same."""
        running = next((each for each in held if each.runs or each.over is not None), None)
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
                self._end(held, OVERDUE_SECONDS, End(ExitCode.NOT_STARTED, held.why.words))

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
