"""What the cluster grants: rights for each rule that a conductor needs, GPUs of each class, and the quota."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from podium.components.launch.job_settings import GpuClass, read_job_settings
from podium.pipelines.doctor.finding import Finding
from podium.trainer.errors import UserError

if TYPE_CHECKING:
    from podium.components.launch.job_cluster import Cluster
    from podium.pipelines.installation import Installation

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

    from podium.components.launch.job_rbac import CONDUCTOR_RULES

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
