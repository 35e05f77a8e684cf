"""What the tests on a cluster share: the cluster itself, namespaces and buckets of their own, and the lock.

Tests run side by side. One that stops a part of the cluster is marked `disruptive`: it waits until no other test uses
the cluster, and none begins until it is over.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SETUP = Path(__file__).parent / "setup" / "cluster.py"
TIMEOUT_SECONDS = 300
LONG = ("chart", "pods", "pages", "jobs/test_jobs_scale.py", "jobs/test_jobs_two_nodes.py")
"""Folders and files whose tests are long."""
SECRET, CONFIG_MAP = "podium-credentials", "podium-config"


@dataclass(frozen=True)
class Cluster:
    """The cluster under test and its S3 server."""

    kubeconfig: str
    s3_endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    version: str
    """Podium's own, which tags its images."""

    @property
    def steps_image(self) -> str:
        return f"podium/python-steps:{self.version}"

    @property
    def trainer_image(self) -> str:
        return f"podium/python-trainer:{self.version}"

    @cached_property
    def api(self) -> Any:
        """A kubernetes.client.ApiClient."""
        from kubernetes import config

        return config.new_client_from_config(self.kubeconfig)

    @cached_property
    def core(self) -> Any:
        """kubernetes.client.CoreV1Api."""
        from kubernetes import client

        return client.CoreV1Api(self.api)

    @cached_property
    def batch(self) -> Any:
        """kubernetes.client.BatchV1Api."""
        from kubernetes import client

        return client.BatchV1Api(self.api)

    @property
    def no_answer(self) -> Any:
        """What the clients above raise."""
        from kubernetes.client.exceptions import ApiException

        return ApiException

    @cached_property
    def s3(self) -> Any:
        """A boto3 client of the S3 server, as its administrator."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.s3_endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
        )

    @cached_property
    def node(self) -> str:
        """The name of a node that takes any pod; simulated ones, which do not, may be there too."""
        items = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        real = [item["metadata"] for item in items if not item["spec"].get("taints")]
        return str(real[0]["name"])

    @property
    def environment(self) -> dict[str, str]:
        """What a process on this machine needs to reach the cluster and the store."""
        return {
            "KUBECONFIG": self.kubeconfig,
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl prints; AssertionError with its error where it fails."""
        argv = ["kubectl", "--kubeconfig", self.kubeconfig, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, input=stdin)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *objects: dict[str, Any], namespace: str = "default") -> None:
        """Create or change objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(listed))

    def part(self, command: str, name: str, *, kill: bool = False) -> None:
        """`stop`, `start` or `restart` a program of the cluster (kubelet, versitygw …), in a `disruptive` test only."""
        argv = [sys.executable, str(SETUP), command, name, *(["--kill"] if kill else [])]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Finished:
    """A pod that ended."""

    code: int
    log: str
    """Of all its containers."""
    pod: dict[str, Any]
    """As kubectl shows it, status included."""


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that KUBECONFIG names and the S3 server that PODIUM_TEST_S3 names."""
    missing = [name for name in ("KUBECONFIG", "PODIUM_TEST_S3") if not os.environ.get(name)]
    if missing:
        pytest.fail(f"no {' and no '.join(missing)}: run `make test-cluster`, or source the `env` of a running cluster")
    import tomllib

    return Cluster(
        kubeconfig=os.environ["KUBECONFIG"],
        s3_endpoint=os.environ["PODIUM_TEST_S3"],
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        version=tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"],
    )


@pytest.fixture(scope="session")
def make_namespace(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Makes a namespace under Pod Security `restricted` with the Secret and the ConfigMap that Podium's pods read.

    `config` adds to the ConfigMap, `secret` replaces the Secret's values. Deleted at the end.
    """
    made: list[str] = []

    def make(config: dict[str, str] | None = None, secret: dict[str, str] | None = None) -> str:
        name = f"podium-t-{uuid.uuid4().hex[:8]}"
        made.append(name)
        keys = {"AWS_ACCESS_KEY_ID": cluster.access_key, "AWS_SECRET_ACCESS_KEY": cluster.secret_key}
        address = {
            "AWS_ENDPOINT_URL": cluster.s3_endpoint,
            "AWS_REGION": cluster.region,
            "AWS_DEFAULT_REGION": cluster.region,
        }
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
            }
        )
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET},
                "stringData": keys if secret is None else secret,
            },
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": CONFIG_MAP},
                "data": {**address, **(config or {})},
            },
            # The Jobs' own account, which may do nothing.
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "podium-trial"}},
            namespace=name,
        )
        return name

    yield make
    with _locked(alone=False):
        for name in made:
            cluster.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def namespace(make_namespace: Callable[..., str], cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own. When the test fails, its events and its pods' logs are printed."""
    name = make_namespace()
    yield name
    if getattr(request.node, "failed", False):
        print(describe(cluster, name))
    cluster.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture(scope="session")
def make_bucket(cluster: Cluster) -> Iterator[Callable[[], str]]:
    """Makes an empty bucket and returns its name. Deleted with its content at the end."""
    made: list[str] = []

    def make() -> str:
        made.append(f"podium-t-{uuid.uuid4().hex[:12]}")
        cluster.s3.create_bucket(Bucket=made[-1])
        return made[-1]

    yield make
    with _locked(alone=False):
        for name in made:
            bucket_away(cluster, name)


@pytest.fixture
def bucket(make_bucket: Callable[[], str], cluster: Cluster) -> Iterator[str]:
    """The name of an empty bucket of the test's own."""
    name = make_bucket()
    yield name
    bucket_away(cluster, name)


@pytest.fixture
def store(bucket: str) -> str:
    """The URI of an empty store of the test's own, on S3."""
    return f"s3://{bucket}/store"


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., Any]:
    """`wait_for(what, condition, seconds)`: what `condition()` returns once that is true, else AssertionError."""

    def wait(what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.25)

    return wait


@pytest.fixture(scope="session")
def run_pod(cluster: Cluster, wait_for: Callable[..., Any]) -> Callable[..., Finished]:
    """`run_pod(namespace, container, spec, seconds)`: run one container to its end, as Pod Security `restricted` wants.

    `container` (image, command, env, resources, volumeMounts …) and `spec` (volumes, serviceAccountName …) are merged
    over a non-root user, no capabilities, RuntimeDefault seccomp and the Secret and ConfigMap as environment.
    """

    def run(
        namespace: str, container: dict[str, Any], spec: dict[str, Any] | None = None, seconds: float = 120.0
    ) -> Finished:
        name = f"pod-{uuid.uuid4().hex[:8]}"
        locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        sources = [{"secretRef": {"name": SECRET}}, {"configMapRef": {"name": CONFIG_MAP}}]
        main = {
            "name": "main",
            "imagePullPolicy": "Never",
            "securityContext": locked,
            "envFrom": sources,
            **container,
        }
        user = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
        whole = {"restartPolicy": "Never", "securityContext": user, "containers": [main], **(spec or {})}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole}, namespace=namespace
        )

        def ended() -> dict[str, Any] | None:
            pod: dict[str, Any] = json.loads(cluster.kubectl("-n", namespace, "get", "pod", name, "-o", "json"))
            return pod if pod["status"].get("phase") in ("Succeeded", "Failed") else None

        pod = wait_for(f"pod {name} ends", ended, seconds)
        states = [status["state"].get("terminated", {}) for status in pod["status"].get("containerStatuses", [])]
        log = cluster.kubectl("-n", namespace, "logs", name, "--all-containers", check=False)
        return Finished(max((state.get("exitCode", 1) for state in states), default=1), log, pod)

    return run


@contextmanager
def _locked(*, alone: bool) -> Iterator[None]:
    folder = Path(os.environ.get("PODIUM_CLUSTER_DIR") or CHECKOUT / ".cluster")
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session")
def undisturbed() -> Callable[[], Any]:
    """`with undisturbed():` what a wider fixture does on the cluster; it is set up before its test takes the lock."""
    return lambda: _locked(alone=False)


@pytest.fixture(scope="session")
def own_cluster() -> None:
    """For a test that reaches into the machine under the cluster: skipped where KUBECONFIG names somebody else's."""
    folder = os.environ.get("PODIUM_CLUSTER_DIR")
    if not folder or not (Path(folder) / "kubeconfig").exists():
        pytest.skip("stops parts of the cluster or ends processes of its node: only on the one of `make cluster`")


@pytest.fixture(autouse=True)
def _cluster_lock(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shared with other tests, and for a `disruptive` one alone."""
    if request.node.get_closest_marker("cluster") is None:
        yield
        return
    with _locked(alone=request.node.get_closest_marker("disruptive") is not None):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tell the fixtures whether the test failed."""
    report = yield
    if report.when in ("setup", "call") and report.failed:
        item.failed = True  # type: ignore[attr-defined]
    return report


def is_long(test: str) -> bool:
    """Whether a test needs the machine, or what its file sets up, for so long that none like it runs beside it."""
    return any(Path(test.partition("::")[0]).is_relative_to(Path("tests/cluster", each)) for each in LONG)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All long tests on one worker, each of the others on the next that is free.

    Not by `--dist loadgroup`: with pytest 9.2, xdist 3.8 spreads a group's tests over all workers and says nothing.
    """
    from xdist.scheduler import LoadScopeScheduling

    class LongTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "long" if is_long(nodeid) else nodeid

    return LongTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What disturbs others comes last. Time-outs are the tests' own: waiting for the lock costs none."""
    for item in items:
        if is_long(item.nodeid):
            item.add_marker(pytest.mark.long)
        if item.get_closest_marker("cluster"):
            limit = item.get_closest_marker("timeout")
            seconds = limit.args[0] if limit else TIMEOUT_SECONDS
            item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)
    items.sort(key=lambda item: item.get_closest_marker("disruptive") is not None)


def bucket_away(cluster: Cluster, name: str) -> None:
    """Remove a bucket and all that is in it, as far as the last pods let it: they may still be writing."""
    with suppress(cluster.s3.exceptions.ClientError):
        for page in cluster.s3.get_paginator("list_objects_v2").paginate(Bucket=name):
            keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
            if keys:
                cluster.s3.delete_objects(Bucket=name, Delete={"Objects": keys, "Quiet": True})
        cluster.s3.delete_bucket(Bucket=name)


def describe(cluster: Cluster, namespace: str) -> str:
    """A namespace's Jobs, pods and events, and the end of each pod's log."""
    shown = [f"--- {namespace}", cluster.kubectl("-n", namespace, "get", "jobs,pods", "-o", "wide", check=False)]
    shown.append(cluster.kubectl("-n", namespace, "get", "events", "--sort-by=.lastTimestamp", check=False)[-6000:])
    for pod in cluster.kubectl("-n", namespace, "get", "pods", "-o", "name", check=False).split():
        log = cluster.kubectl("-n", namespace, "logs", pod, "--all-containers", "--tail=30", check=False)
        shown += [f"--- {pod}", log]
    return "\n".join(shown)
