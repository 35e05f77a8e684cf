"""With the least Role a conductor does its work, and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.launch.job_cluster import CONDUCTOR_RULES, role

pytestmark = [pytest.mark.cluster, pytest.mark.core]


@pytest.fixture
def as_conductor(cluster: Any, namespace: str, tmp_path: Any) -> str:
    """A kubeconfig of a service account that has the conductor's Role in the namespace, and nothing else."""
    import yaml

    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "conductor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "conductor"},
        "subjects": [{"kind": "ServiceAccount", "name": "conductor", "namespace": namespace}],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "conductor"}}
    cluster.apply(account, role("conductor", CONDUCTOR_RULES), binding, namespace=namespace)
    token = cluster.kubectl("-n", namespace, "create", "token", "conductor").strip()
    with open(cluster.kubeconfig, encoding="utf-8") as file:
        server = yaml.safe_load(file)["clusters"][0]["cluster"]
    if "certificate-authority" in server:
        with open(server.pop("certificate-authority"), "rb") as file:
            server["certificate-authority-data"] = base64.b64encode(file.read()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        "current-context": "x",
    }
    path = tmp_path / "conductor.kubeconfig"
    path.write_text(json.dumps(config))
    return str(path)


def test_the_least_role_suffices_for_a_stage(
    on_jobs: Any, as_conductor: str, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., Any]
) -> None:
    monkeypatch.setenv("KUBECONFIG", as_conductor)
    run = on_jobs.make(steps=40, variants="{bad: {overrides: {data.sequence_length: 16}}}")
    assert on_jobs.conduct(run).wait(240) == 0, on_jobs.said()
    assert "finished=2" in on_jobs.said()


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        (("create", "jobs.batch"), True),
        (("watch", "jobs.batch"), True),
        (("delete", "jobs.batch"), True),
        (("get", "pods/log"), True),
        (("list", "events"), True),
        (("create", "services"), True),
        (("list", "secrets"), False),
        (("get", "secrets"), False),
        (("create", "pods"), False),
        (("create", "pods/exec"), False),
        (("get", "configmaps"), False),
        (("create", "rolebindings"), False),
        (("patch", "jobs.batch"), False),
        (("delete", "pods"), False),
        (("list", "nodes"), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_role_allows_this_and_not_that(
    cluster: Any, namespace: str, as_conductor: str, what: tuple[str, str], allowed: bool
) -> None:
    answer = cluster.kubectl("--kubeconfig", as_conductor, "-n", namespace, "auth", "can-i", *what, check=False)
    assert answer.strip() == ("yes" if allowed else "no")


def test_another_namespace_is_closed_to_it(
    cluster: Any, make_namespace: Callable[[], str], as_conductor: str, tmp_path: Any
) -> None:
    other = make_namespace()
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(pod))
    import subprocess

    for command in (["get", "pods"], ["get", "secrets"], ["get", "jobs"], ["create", "-f", str(file)]):
        argv = ["kubectl", "--kubeconfig", as_conductor, "-n", other, *command]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode != 0
        assert "orbidden" in done.stderr, done.stderr
