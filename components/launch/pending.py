"""Why a Job does not run yet, in words, from the Job, its pods and the namespace's warnings.

Some reasons pass by themselves (a queue, a quota, a busy node); others do not (an image that does not exist, a missing
secret), and the launcher gives those a limited time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from podium.components.launch.job_cluster import Object
from podium.components.launch.job_manifest import CONTAINER

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
