"""What the cluster grants: rights for each rule that a conductor needs, GPUs of each class, and the quota."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from podium.components.launch.job_manifest import GpuClass, read_job_settings
from podium.pipelines.installation import Installation, images
from podium.pipelines.kubeflow.address import HOST, Address, is_given
from podium.pipelines.kubeflow.api import open_kubeflow
from podium.trainer.trial.errors import PodiumError, UserError
from podium.trainer.trial.storage import normalise_uri, open_storage
from podium.trainer.trial.sync import mlflow_uri

if TYPE_CHECKING:
    from podium.components.launch.job_cluster import Cluster


# Checks run concurrently, each with a time limit; an error is a finding, never a traceback.

Status = Literal["ok", "warning", "failed", "skipped"]
SECONDS = 30.0


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: Status
    found: str
    do: str = ""
    """What to do about it; empty where nothing is to be done."""


Check = Callable[[], Iterator[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]], seconds: float = SECONDS) -> list[Finding]:
    """Run every check at once, and list what they found in their order.

    A check that is not done in time, or that fails in a way of its own, is a finding like any other.
    """
    found: list[list[Finding]] = [[] for _ in checks]
    # daemon threads: a server that never answers must not keep the command from ending
    threads = [
        threading.Thread(target=_run, args=(name, check, found[index]), daemon=True)
        for index, (name, check) in enumerate(checks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    late = [
        [Finding(name, "failed", f"no answer within {seconds:g} s", "look at the network between here and there")]
        if thread.is_alive()
        else []
        for (name, _), thread in zip(checks, threads, strict=True)
    ]
    return [each for done, more in zip(found, late, strict=True) for each in [*done, *more]]


def _run(name: str, check: Check, found: list[Finding]) -> None:
    try:
        # not by `extend`: what a check has found before it hangs is worth showing
        for each in check():
            found.append(each)  # noqa: PERF402
    except Exception as error:  # noqa: BLE001  clients of four servers each raise their own, and the others must go on
        said = (str(error).splitlines() or [type(error).__name__])[0]
        found.append(Finding(name, "failed", said, "see what the message names"))


CONNECT_SECONDS, READ_SECONDS = 5, 15
TIMEOUT = (CONNECT_SECONDS, READ_SECONDS)
BLOCKING = ("NoSchedule", "NoExecute")


def check_cluster(site: Installation, namespace: str | None) -> Iterator[Finding]:
    """Rights, GPU classes and quota, where a cluster can be reached from here."""
    from podium.components.launch.job_cluster import open_cluster

    try:
        cluster = open_cluster(namespace or read_job_settings().namespace)
    except UserError:
        do = "needed for launcher job: run in a pod, or set KUBECONFIG"
        yield Finding("Cluster", "skipped", "no pod's service account and no kubeconfig here", do)
        return
    try:
        yield from check_rights(cluster)
        yield from check_gpus(cluster, {**read_job_settings().gpu_classes, **site.gpu_classes})
        yield from check_quota(cluster)
    finally:
        cluster.close()


def check_rights(cluster: Cluster) -> Iterator[Finding]:
    """Whether whoever runs this may do all that a conductor does, one question a verb (SelfSubjectAccessReview)."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException

    from podium.components.launch.job_cluster import CONDUCTOR_RULES

    name = "Rights"
    api = client.AuthorizationV1Api(cluster.api)
    missing: list[str] = []
    asked = 0
    for group, resource, verb in _questions(CONDUCTOR_RULES):
        resource, _, sub = resource.partition("/")
        wanted = {"namespace": cluster.namespace, "group": group, "resource": resource, "verb": verb}
        review = {"spec": {"resourceAttributes": {**wanted, **({"subresource": sub} if sub else {})}}}
        try:
            answer = api.create_self_subject_access_review(review, _request_timeout=TIMEOUT)
        except ApiException as error:
            yield Finding(
                name, "failed", f"the cluster does not take who asks: {error.status} {error.reason}", "log in"
            )
            return
        asked += 1
        if not answer.status.allowed:
            missing.append(f"{verb} {resource}{f'/{sub}' if sub else ''}")
    if missing:
        do = "bind the chart's role to this account: runners: [{namespace, serviceAccount}]"
        yield Finding(name, "failed", f"in namespace {cluster.namespace} may not: {', '.join(missing)}", do)
    else:
        yield Finding(name, "ok", f"in namespace {cluster.namespace} all {asked} that launcher job needs")


def check_gpus(cluster: Cluster, classes: Mapping[str, GpuClass]) -> Iterator[Finding]:
    """How many GPUs the nodes of each class have; without classes, those of all nodes."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException

    try:
        nodes = client.CoreV1Api(cluster.api).list_node(_request_timeout=TIMEOUT).items
    except ApiException as error:
        do = "not needed to run; an administrator can look: kubectl describe nodes"
        yield Finding("GPUs", "skipped", f"may not list nodes: {error.status} {error.reason}", do)
        return
    for title, each in (classes or {"any": GpuClass()}).items():
        name = "GPUs" if not classes else f"GPUs: {title}"
        fitting = [node for node in nodes if _fits(node, each)]
        counts = [int(node.status.allocatable.get(each.resource, "0")) for node in fitting]
        if sum(counts):
            having = sum(count > 0 for count in counts)
            found = f"{sum(counts)} × {each.resource} on {having} of {len(nodes)} nodes, at most {max(counts)} on one"
            yield Finding(name, "ok", found)
        elif not classes:
            do = "studies on the CPU run; others would wait for ever"
            yield Finding(name, "warning", f"no node has {each.resource}", do)
        else:
            found = f"no {each.resource} on the {len(fitting)} of {len(nodes)} nodes that its selector and taints leave"
            yield Finding(name, "failed", found, "label or add nodes, or change gpu_classes")


def check_quota(cluster: Cluster) -> Iterator[Finding]:
    """What a ResourceQuota of the namespace leaves."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException

    name = "Quota"
    try:
        quotas = client.CoreV1Api(cluster.api).list_namespaced_resource_quota(
            cluster.namespace, _request_timeout=TIMEOUT
        )
    except ApiException as error:
        yield Finding(name, "skipped", f"may not list quotas: {error.status} {error.reason}")
        return
    full: list[str] = []
    left: list[str] = []
    for quota in quotas.items:
        used = quota.status.used or {}
        for resource, hard in (quota.status.hard or {}).items():
            words = f"{resource} {used.get(resource, '0')} of {hard}"
            (full if _amount(used.get(resource, "0")) >= _amount(hard) else left).append(words)
    if full:
        do = "Jobs wait until others end, or ask for a larger quota"
        yield Finding(name, "warning", f"namespace {cluster.namespace}: used up: {', '.join(full)}", do)
    elif left:
        yield Finding(name, "ok", f"namespace {cluster.namespace}: {', '.join(left)} used")
    else:
        yield Finding(name, "ok", f"namespace {cluster.namespace} has none")


def _questions(rules: Any) -> Iterator[tuple[str, str, str]]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield from ((group, resource, verb) for verb in rule["verbs"])


def _fits(node: Any, wanted: GpuClass) -> bool:
    """Whether the scheduler would put a pod of this class on the node, but for what is used."""
    labels = node.metadata.labels or {}
    if any(labels.get(key) != value for key, value in wanted.node_selector.items()) or node.spec.unschedulable:
        return False
    return all(
        any(_tolerates(toleration, taint) for toleration in wanted.tolerations)
        for taint in node.spec.taints or []
        if taint.effect in BLOCKING
    )


def _tolerates(toleration: Mapping[str, Any], taint: Any) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint.key)
    return (toleration.get("key"), toleration.get("value") or "") == (taint.key, taint.value or "")


def _amount(quantity: str) -> Any:
    from kubernetes.utils import parse_quantity

    return parse_quantity(quantity)


# Servers: Kubeflow, the store, MLflow.

TIMEOUT_SECONDS = 10.0
OLDEST_MLFLOW = (3, 5)


def check_kubeflow(address: Address) -> Iterator[Finding]:
    """Whether Kubeflow's API answers, takes who asks, and knows the namespace."""
    name = "Kubeflow"
    if not is_given(address):
        yield Finding(name, "skipped", "no address", f"give --host, --port-forward or {HOST} to check it")
        return
    try:
        with open_kubeflow(address) as kubeflow:
            users = "many users" if kubeflow.multi_user() else "one user"
            kubeflow.check_namespace()
            kubeflow.experiment_names()
            where = f" as {kubeflow.address.namespace}" if kubeflow.address.namespace else ""
            yield Finding(name, "ok", f"{kubeflow.address.host} answers{where} ({users})")
    except UserError as error:
        yield Finding(name, "failed", str(error), "mend what the message names, then podium doctor again")


def check_store(store: str | None) -> Iterator[Finding]:
    """Whether the store can be written, honours create-once, and forgets what is deleted."""
    name = "Store"
    if not store:
        yield Finding(name, "skipped", "no store is named", "give --store, or store: in the installation's file")
        return
    where = normalise_uri(store)
    try:
        storage = open_storage(where)
        storage.probe()
        key = f"doctor-{uuid.uuid4().hex}"
        once = storage.create(key, b"1"), storage.create(key, b"2")
        kept = storage.read_bytes(key)
        storage.delete(key)
    except PodiumError as error:
        # the message names the variable or the server's own words
        yield Finding(name, "failed", str(error), "check the endpoint, the keys (AWS_…) and the bucket's policy")
        return
    if once != (True, False) or kept != b"1":
        found = f"{where} lets an object be created twice, so that ledger entries would be lost"
        yield Finding(name, "failed", found, "use a server that honours If-None-Match: * (S3, MinIO, versitygw)")
        return
    yield Finding(name, "ok", f"{where}: written, created once, read, deleted")
    if not where.startswith("s3://"):
        yield Finding(name, "warning", "a folder serves this machine alone", "a cluster needs s3://bucket/prefix")


def check_mlflow(store: str | None) -> Iterator[Finding]:
    """Whether MLflow answers, at which version, and takes who asks."""
    name = "MLflow"
    uri = mlflow_uri(store or "runs")
    if not uri.startswith(("http://", "https://")):
        yield Finding(name, "ok", f"{uri} (a file of this machine; MLFLOW_TRACKING_URI names a server)")
        return
    try:
        version = _get(f"{uri.rstrip('/')}/version")
        _get(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", errors="replace")
        yield Finding(name, "failed", f"{uri}: {error.code} {error.reason}", _mlflow_advice(error.code, said))
        return
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        yield Finding(name, "failed", f"{uri} can't be reached: {reason}", "check the address and the NetworkPolicies")
        return
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if number < OLDEST_MLFLOW:
        wanted = ".".join(map(str, OLDEST_MLFLOW))
        yield Finding(name, "warning", f"{uri}: version {version}", f"upgrade the server to {wanted} or newer")
    else:
        yield Finding(name, "ok", f"{uri}: version {version}")


def _mlflow_advice(code: int, said: str) -> str:
    if code == 403 and "host" in said.lower():
        return "the server refuses this Host: add it to MLFLOW_SERVER_ALLOWED_HOSTS, with and without its port"
    if code in (401, 403):
        return "give MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return "is this the address of an MLflow tracking server?"


def _get(url: str) -> str:
    request = urllib.request.Request(url)  # noqa: S310  http and https alone come here
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        text: str = answer.read().decode("utf-8", errors="replace")
    if url.endswith("/version"):
        return text.strip()
    json.loads(text)
    return text


# Versions: of this machine, those that Podium supports, and those of the images.

KFP = "2.17"
"""What compiled pipelines are tried on; the SDK's and the server's."""
PYTHONS = ("3.11", "3.12", "3.13")


def check_versions(site: Installation) -> Iterator[Finding]:
    """This machine's versions, and whether the images are of the same Podium."""
    import podium

    python, kfp = platform.python_version(), importlib.metadata.version("kfp")
    said = f"podium {podium.__version__}, Python {python}, kfp {kfp}"
    wrong = []
    if not kfp.startswith(f"{KFP}."):
        wrong.append(f"pip install 'kfp~={KFP}.0'")
    if not python.startswith(PYTHONS):
        wrong.append(f"use Python {' or '.join(PYTHONS)}")
    yield Finding("Versions", "warning" if wrong else "ok", said, "; ".join(wrong))
    for kind, image in images(site).items():
        yield _image(kind.replace("_", " "), image, podium.__version__)


def _image(kind: str, image: str, version: str) -> Finding:
    tag = re.search(r":([^/:@]+)(@|$)", image)
    if tag is None:
        do = f"name the tag that is this version, {version}"
        return Finding("Images", "warning", f"{kind}: {image} says no version", do)
    if tag[1].split("-")[0] != version:
        do = "install that version of podium here, or upgrade the cluster's installation"
        return Finding("Images", "warning", f"{kind}: {image} is not this podium, {version}", do)
    return Finding("Images", "ok", f"{kind}: {image}")
