"""The cluster under test is a real one: it schedules, resolves, enforces and counts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.cluster

ASK = """
import socket, urllib.request
print(socket.gethostbyname("kubernetes.default"))
try:
    socket.gethostbyname("example.com")
except OSError as error:
    print(error)
socket.create_connection(("kubernetes.default", 443), 5).close()
"""


def test_a_pod_resolves_the_clusters_names_and_no_others(cluster, namespace, run_pod):
    done = run_pod(namespace, {"image": cluster.steps_image, "command": ["python", "-c", ASK]})
    assert done.code == 0, done.log
    assert done.log.splitlines()[0] == "10.96.0.1"
    assert "not known" in done.log


def test_a_pod_that_breaks_pod_security_is_refused(cluster, namespace):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "main", "image": cluster.steps_image, "command": ["id"]}]},
    }
    with pytest.raises(AssertionError, match='violates PodSecurity "restricted'):
        cluster.apply(pod, namespace=namespace)


def test_no_more_gpus_are_granted_than_the_node_has(cluster, namespace, wait_for):
    for number in range(3):
        limits = {"cpu": "1m", "memory": "8Mi", "nvidia.com/gpu": "4"}
        container = {
            "name": "main",
            "image": "podium-test/pause:1",
            "imagePullPolicy": "Never",
            "resources": {"limits": limits},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        user = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
        spec = {"restartPolicy": "Never", "securityContext": user, "containers": [container]}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"gpu-{number}"}, "spec": spec},
            namespace=namespace,
        )

    def waiting() -> str:
        pods = json.loads(cluster.kubectl("-n", namespace, "get", "pods", "-o", "json"))["items"]
        reasons = [
            c.get("message", "") for p in pods for c in p["status"].get("conditions", []) if c["status"] == "False"
        ]
        return next((reason for reason in reasons if "Insufficient nvidia.com/gpu" in reason), "")

    print(wait_for("the third pod of four GPUs waits", waiting, 60))


def test_of_eight_racing_writers_one_creates_an_object(cluster, bucket):
    def create(number: int) -> str:
        try:
            cluster.s3.put_object(Bucket=bucket, Key="once", Body=str(number).encode(), IfNoneMatch="*")
        except cluster.s3.exceptions.ClientError as error:
            return error.response["Error"]["Code"]
        return "created"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == ["PreconditionFailed"] * 7 + ["created"]
