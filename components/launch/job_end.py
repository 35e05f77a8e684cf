"""How a Job stands and how it ended, read from what the API server says of it and of its pods."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from podium.components.launch.job_cluster import Object
from podium.components.launch.job_manifest import CONTAINER
from podium.components.launch.launcher import OVERDUE, RUN_AGAIN, USER_ERROR

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
        return End(OVERDUE, f"it ran into the deadline of {job['spec'].get('activeDeadlineSeconds')} s")
    ends = sorted((end for pod in pods if (end := _end_of_pod(pod)) is not None), key=lambda end: end[:2])
    if ends:
        return ends[0][2]
    if DISRUPTION in said:
        return End(RUN_AGAIN, "its pod was taken away (preempted, drained or its node is gone)")
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
        return 1, "", End(RUN_AGAIN, f"its pod was taken away: {words}", pod=name)
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
    return (2 if code == USER_ERROR else 3), when, end


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
