"""The chart, installed as an administrator would: PostgreSQL and S3 outside, an API of Kubeflow, one runner."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
CHART = CHECKOUT / "charts" / "podium"
KFP_API = CHECKOUT / "tests" / "kfp_api" / "server.py"
PASSWORD = "it's %40 / a:p@ssword"
"""Every sign that breaks an address which is put together by hand."""
RUNNER = "pipeline-runner"
DEADLINE_SECONDS = 600


@dataclass
class Postgres:
    """A PostgreSQL server of Debian's on this machine, where pods reach it."""

    host: str
    port: int
    folder: Path
    binaries: Path

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        options = f"-p {self.port} -c listen_addresses={self.host} -c fsync=off -c max_connections=200 -k ''"
        log = str(self.folder / "log")
        self._as_postgres("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """End it as a machine that fails: no goodbye to its clients."""
        self._as_postgres("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def create(self, database: str) -> str:
        """A new, empty database; its address."""
        self._client("createdb", database)
        return f"postgresql://podium:{urllib.parse.quote(PASSWORD, safe='')}@{self.host}:{self.port}/{database}"

    def ask(self, database: str, statement: str) -> str:
        """What a statement returns, as psql prints it without decoration."""
        return self._client("psql", "-Atqc", statement, database)

    def _client(self, program: str, *arguments: str) -> str:
        place = ["-h", self.host, "-p", str(self.port), "-U", "podium"]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        argv = [str(self.binaries / program), *place, *arguments]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _as_postgres(self, program: str, *arguments: str) -> None:
        # its own log file keeps our pipes from staying open with the server
        argv = ["runuser", "-u", "postgres", "--", str(self.binaries / program), *arguments]
        done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        assert done.returncode == 0, f"{program} {arguments}: {(self.folder / 'log').read_text()[-2000:]}"


@pytest.fixture(scope="session")
def postgres(cluster: Any) -> Iterator[Postgres]:
    """A server with the user `podium`; removed with all its data at the end."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("no PostgreSQL on this machine: apt-get install postgresql, which `make cluster` does")
    folder = Path(tempfile.mkdtemp(prefix="podium-postgres-", dir="/tmp"))
    shutil.chown(folder, "postgres")
    host = urllib.parse.urlsplit(cluster.s3_endpoint).hostname or ""
    server = Postgres(host, _free_port(host), folder, found[-1].parent)
    secret = folder / "password"
    secret.write_text(PASSWORD)
    try:
        options = ["-U", "podium", "-A", "scram-sha-256", "--no-sync", f"--pwfile={secret}"]
        server._as_postgres("initdb", "-D", str(folder / "data"), *options)
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Release:
    """A release of the chart with its two namespaces."""

    cluster: Any
    name: str
    namespace: str
    runner: str
    values: dict[str, Any]
    ready_seconds: float = field(default=0.0, init=False)
    """From `helm install` to its end, which waits for the server and the upload."""

    def helm(self, *arguments: str, check: bool = True, values: dict[str, Any] | None = None) -> str:
        """What helm prints, errors included; with `values`, given as a file on stdin."""
        argv = ["helm", "--kubeconfig", self.cluster.kubeconfig, "--namespace", self.namespace, *arguments]
        stdin = None if values is None else json.dumps(values)
        done = subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if check and done.returncode != 0:
            raise AssertionError(f"helm {' '.join(arguments)}\n{done.stdout}\n{self.describe()}")
        return done.stdout

    def install(self) -> str:
        """Install and wait; the notes."""
        began = time.monotonic()
        said = self._apply("install", self.values)
        self.ready_seconds = time.monotonic() - began
        return said

    def upgrade(self, changes: dict[str, Any]) -> str:
        """Upgrade to the values with these changes, and wait; the notes."""
        return self._apply("upgrade", merged(self.values, changes))

    def uninstall(self) -> None:
        """Remove it, if it is there."""
        self.helm("uninstall", self.name, "--wait", "--timeout", f"{DEADLINE_SECONDS}s", "--ignore-not-found")

    def objects(self) -> set[str]:
        """Everything with the release's label in its namespaces and in the cluster."""
        kinds = "deploy,rs,pod,job,cronjob,svc,endpointslice,cm,secret,sa,role,rolebinding,ingress,netpol,pdb"
        found = []
        for where in (["-n", self.namespace], ["-n", self.runner]):
            label = f"app.kubernetes.io/instance={self.name}"
            found += self.cluster.kubectl(*where, "get", kinds, "-l", label, "-o", "name").split()
        everywhere = "priorityclass,clusterrole,clusterrolebinding"
        found += self.cluster.kubectl(
            "get", everywhere, "-l", f"app.kubernetes.io/instance={self.name}", "-o", "name"
        ).split()
        return set(found)

    def describe(self) -> str:
        """Events and logs of both namespaces, for a failure's message."""
        shown = []
        for namespace in (self.namespace, self.runner):
            shown.append(self.cluster.kubectl("-n", namespace, "get", "pods,jobs", check=False))
            shown.append(self.cluster.kubectl("-n", namespace, "get", "events", check=False)[-4000:])
            for pod in self.cluster.kubectl("-n", namespace, "get", "pods", "-o", "name", check=False).split():
                log = self.cluster.kubectl("-n", namespace, "logs", pod, "--all-containers", "--tail=20", check=False)
                shown += [f"--- {pod}", log]
        return "\n".join(shown)

    def start_pod(self, name: str, *command: str) -> None:
        """Start a command in a pod of the runner with the image, account and environment of a step."""
        image = f"podium/python-steps:{self.values['images']['steps']['tag']}"
        self.cluster.apply(step_pod(name, image, list(command)), namespace=self.runner)

    def wait_for_pod(self, name: str, seconds: float = DEADLINE_SECONDS) -> str:
        """The log of a pod that has ended well. AssertionError with the log of one that has not."""
        deadline = time.monotonic() + seconds
        while True:
            ask = ["get", "pod", name, "-o", "jsonpath={.status.phase}"]
            phase = str(self.cluster.kubectl("-n", self.runner, *ask))
            if phase in ("Succeeded", "Failed") or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert phase == "Succeeded", f"pod {name} is {phase}:\n{self.log(name)}\n{self.describe()}"
        return self.log(name)

    def log(self, pod: str) -> str:
        """What a pod of the runner has said so far."""
        return str(self.cluster.kubectl("-n", self.runner, "logs", pod, check=False))

    @cached_property
    def mlflow_uri(self) -> str:
        """As the installed configuration says it."""
        return str(self.config["PODIUM_MLFLOW_URI"])

    @property
    def config(self) -> dict[str, str]:
        """The data of the runner's podium-config."""
        found = self.cluster.kubectl("-n", self.runner, "get", "configmap", "podium-config", "-o", "json")
        return dict(json.loads(found)["data"])

    def kubeflow(self, path: str) -> dict[str, Any]:
        """What the stand-in of Kubeflow's API answers to a GET."""
        proxy = f"/api/v1/namespaces/{self.namespace}/services/ml-pipeline:8888/proxy"
        return dict(json.loads(self.cluster.kubectl("get", "--raw", f"{proxy}/{path}")))

    def _apply(self, verb: str, values: dict[str, Any]) -> str:
        wait = ["--wait", "--timeout", f"{DEADLINE_SECONDS}s"]
        return self.helm(verb, self.name, str(CHART), *wait, "--values", "-", values=values)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with changes, mapping by mapping."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return result


def step_pod(name: str, image: str, command: list[str]) -> dict[str, Any]:
    """A pod like a step's: the runner's account, podium-config and podium-credentials as environment."""
    container = {
        "name": "step",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "envFrom": [{"configMapRef": {"name": "podium-config"}}, {"secretRef": {"name": "podium-credentials"}}],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    user = {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": RUNNER,
        "securityContext": user,
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="session")
def make_bare_namespace(cluster: Any, make_namespace: Callable[..., str]) -> Callable[[], str]:
    """Makes a namespace with the credentials' Secret and without what the chart brings."""

    def make() -> str:
        name = make_namespace()
        cluster.kubectl("-n", name, "delete", "configmap/podium-config", "serviceaccount/podium-trial")
        return name

    return make


@pytest.fixture(scope="session")
def make_release(
    cluster: Any, postgres: Postgres, make_bare_namespace: Callable[[], str], make_bucket: Callable[[], str]
) -> Iterator[Callable[..., Release]]:
    """Prepares what an administrator has before the chart: namespaces, secrets, runner, Kubeflow. Installs nothing."""
    made: list[Release] = []

    def make(name: str, changes: dict[str, Any] | None = None) -> Release:
        namespace, runner = make_bare_namespace(), make_bare_namespace()
        database = namespace.replace("-", "_")
        address = postgres.create(database)
        cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": RUNNER}}, namespace=runner)
        data = {"uri": address, "username": "podium", "password": PASSWORD}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mlflow-database"}, "stringData": data},
            *kubeflow(f"podium/python-steps:{image_tag(cluster)}"),
            namespace=namespace,
        )
        values = {
            "images": {"steps": {"tag": image_tag(cluster)}, "trainer": {"tag": image_tag(cluster)}},
            "kfp": {"endpoint": f"http://ml-pipeline.{namespace}.svc:8888"},
            "runners": [{"namespace": runner, "serviceAccount": RUNNER}],
            "store": {"uri": f"s3://{make_bucket()}/experiments"},
            "s3": {"endpoint": cluster.s3_endpoint, "region": cluster.region},
            "mlflow": {
                "database": {
                    "existingSecret": "mlflow-database",
                    "host": postgres.host,
                    "port": postgres.port,
                    "name": database,
                },
                "resources": {"requests": {"cpu": "100m"}},
            },
        }
        release = Release(cluster, name, namespace, runner, merged(values, changes or {}))
        made.append(release)
        return release

    yield make
    for release in made:
        release.uninstall()


def image_tag(cluster: Any) -> str:
    """Tag of the images: the package's version, unless a developer tries another build."""
    return os.environ.get("PODIUM_TEST_IMAGE_TAG") or str(cluster.version)


def kubeflow(image: str) -> list[dict[str, Any]]:
    """The stand-in of Kubeflow's API as a pod behind its service."""
    labels = {"app": "ml-pipeline"}
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "api",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python", "/api/server.py", "--host", "0.0.0.0", "--port", "8888"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "api", "mountPath": "/api"}],
            }
        ],
        "volumes": [{"name": "api", "configMap": {"name": "kubeflow-stand-in"}}],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kubeflow-stand-in"},
            "data": {"server.py": KFP_API.read_text()},
        },
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ml-pipeline", "labels": labels}, "spec": pod},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "ml-pipeline"},
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 8888}]},
        },
    ]


@pytest.fixture(scope="session")
def installed(make_release: Callable[..., Release]) -> Release:
    """The chart, installed and ready."""
    release = make_release("shared")
    release.install()
    return release


@pytest.fixture(scope="session")
def ci_values() -> dict[str, dict[str, Any]]:
    """Name → values of each of the chart's shapes."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CHART / "ci").glob("*.yaml"))}
