"""A Kubeflow backend in small: it runs a compiled pipeline's steps in pods, with what the YAML says and no more.

It does what the real one was seen to do (API server, driver and launcher of KFP 2.17): walk the graph, resolve every
input, give the executor its input as JSON, start the pod with the compiled image, command and arguments, and read the
outputs from the paths that the executor wrote. Whatever in the YAML it does not know is an error, never left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
LAUNCHER = '''
"""Stands where KFP's launcher stands: the user container's first process. Like it, it passes no signal on."""
import json, os, pathlib, signal, subprocess, sys

signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
given, command = json.loads(sys.argv[1]), [part.replace("{{$}}", sys.argv[1]) for part in sys.argv[2:]]
outputs = given["outputs"]
local = lambda uri: pathlib.Path(uri.replace("minio://", "/minio/"))
artifacts = {name: local(each["artifacts"][0]["uri"]) for name, each in outputs.get("artifacts", {}).items()}
files = [pathlib.Path(each["outputFile"]) for each in outputs.get("parameters", {}).values()]
for path in [*artifacts.values(), *files, pathlib.Path(outputs["outputFile"])]:
    path.parent.mkdir(parents=True, exist_ok=True)
code = subprocess.run(command).returncode
if code == 0:
    written = json.loads(pathlib.Path(outputs["outputFile"]).read_text())
    told = {
        "parameters": written.get("parameterValues", {}),
        "artifacts": {name: path.stat().st_size if path.exists() else None for name, path in artifacts.items()},
    }
    pathlib.Path("/dev/termination-log").write_text(json.dumps(told))
sys.exit(code)
'''
SCRATCH_FOLDERS = ("/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config")
"""Where KFP mounts an empty volume into every step. /tmp is none of them: it is the container's own."""
RESOURCES = {"resourceCpuRequest": "cpu", "resourceMemoryRequest": "memory"}


@dataclass(frozen=True)
class Step:
    """A step that ran."""

    name: str
    """As the Kubeflow UI shows it."""
    image: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    artifacts: dict[str, int | None]
    """Output artifact → its size in bytes; None where it was not written."""
    seconds: float
    pods: int
    """How many pods it took: one more for each that was killed."""


@dataclass
class Backend:
    """Runs one compiled pipeline in one namespace."""

    cluster: Any
    namespace: str
    spec: dict[str, Any]
    platform: dict[str, Any]
    while_running: Callable[[str, str], None] | None = None
    """Called again and again with a step's name and its pod's, while the pod runs."""
    run: str = field(default_factory=lambda: str(uuid.uuid4()))
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def load(cls, cluster: Any, namespace: str, file: Path) -> Backend:
        """A backend for the pipeline in `file`, with the launcher in the namespace."""
        spec, platforms = yaml.safe_load_all(file.read_text(encoding="utf-8"))
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kfp-launcher"}}
        cluster.apply({**script, "data": {"launch.py": LAUNCHER}}, namespace=namespace)
        return cls(cluster, namespace, spec, platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"])

    def run_pipeline(self, **given: Any) -> list[Step]:
        """Run it with inputs over the compiled defaults. Returns the steps in the order in which they ran."""
        declared = self.spec["root"]["inputDefinitions"]["parameters"]
        assert given.keys() <= declared.keys()
        self._run_dag(self.spec["root"]["dag"], {n: given.get(n, d.get("defaultValue")) for n, d in declared.items()})
        return self.steps

    def _run_dag(self, dag: dict[str, Any], inputs: dict[str, Any]) -> None:
        outputs: dict[str, dict[str, Any]] = {}
        waiting = dict(dag["tasks"])
        while waiting:
            ready = [name for name, task in waiting.items() if not set(task.get("dependentTasks", [])) & waiting.keys()]
            assert ready, f"tasks that wait for each other: {sorted(waiting)}"
            for name in ready:
                task = waiting.pop(name)
                if not set(task.get("dependentTasks", [])) <= outputs.keys():
                    continue  # after one that was skipped
                given = self._resolve(task, inputs, outputs)
                if not _triggered(task, given):
                    continue
                component = self.spec["components"][task["componentRef"]["name"]]
                if "dag" in component:
                    self._run_dag(component["dag"], given)
                    outputs[name] = {}
                else:
                    outputs[name] = self._run_step(task, component, given, inputs).outputs

    def _resolve(self, task: dict[str, Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
        given = {}
        for name, source in task.get("inputs", {}).get("parameters", {}).items():
            if "componentInputParameter" in source:
                given[name] = inputs[source["componentInputParameter"]]
            elif "taskOutputParameter" in source:
                made = source["taskOutputParameter"]
                given[name] = outputs[made["producerTask"]][made["outputParameterKey"]]
            else:
                given[name] = source["runtimeValue"]["constant"]
        # Constants may name the task's other inputs, and the run.
        return {name: self._fill(value, given) for name, value in given.items()}

    def _fill(self, value: Any, inputs: dict[str, Any]) -> Any:
        if not isinstance(value, str) or not value.count("{{$"):
            return value
        filled = re.sub(r"\{\{\$\.inputs\.parameters\['(.*?)'\]\}\}", lambda found: str(inputs[found[1]]), value)
        return filled.replace("{{$.pipeline_job_uuid}}", self.run)

    def _run_step(
        self, task: dict[str, Any], component: dict[str, Any], given: dict[str, Any], outer: dict[str, Any]
    ) -> Step:
        label = component["executorLabel"]
        container = dict(self.spec["deploymentSpec"]["executors"][label]["container"])
        name = task["taskInfo"]["name"]
        executor_input = self._executor_input(label, component, given)
        main: dict[str, Any] = {
            "name": "main",
            "image": container.pop("image"),
            "imagePullPolicy": "Never",
            "command": ["python3", "/kfp-launcher/launch.py", json.dumps(executor_input)],
            "args": [*container.pop("command"), *container.pop("args")],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "launcher", "mountPath": "/kfp-launcher"}],
            # The executor's own; any more would be something that a real step does not have.
            "env": [
                {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for variable, path in (
                    ("KFP_POD_NAME", "metadata.name"),
                    ("KFP_POD_UID", "metadata.uid"),
                    ("NAMESPACE", "metadata.namespace"),
                )
            ],
        }
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            # No user: the image's own must do. Kubeflow asks for no more than RuntimeDefault.
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "launcher", "configMap": {"name": "kfp-launcher"}}],
            "containers": [main],
        }
        for index, folder in enumerate(SCRATCH_FOLDERS):
            _mount_empty(pod, f"scratch-{index}", folder)
        main["resources"] = self._resources(container.pop("resources", {}), given)
        assert not container, f"{label} has more than this backend knows: {sorted(container)}"
        self._place(pod, dict(self.platform.get(label, {})), {**outer, **given})

        began = time.monotonic()
        pods = 0
        while True:
            pods += 1
            told = self._run_pod(name, f"{label.removeprefix('exec-')}-{uuid.uuid4().hex[:6]}", pod)
            if told is not None:  # else somebody deleted it by force: the backend starts another one
                break
        seconds = time.monotonic() - began
        step = Step(name, main["image"], given, told["parameters"], told["artifacts"], seconds, pods)
        self.steps.append(step)
        return step

    def _executor_input(self, label: str, component: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        outputs = component.get("outputDefinitions", {})
        root = f"minio://mlpipeline/v2/artifacts/{self.run}/{label}"
        return {
            "inputs": {"parameterValues": given},
            "outputs": {
                "parameters": {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})},
                "artifacts": {
                    key: {"artifacts": [{"name": key, "uri": f"{root}/{key}", "type": each["artifactType"]}]}
                    for key, each in outputs.get("artifacts", {}).items()
                },
                "outputFile": "/tmp/kfp_outputs/output_metadata.json",
            },
        }

    def _resources(self, declared: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        requests, limits = {}, {}
        for key, value in declared.items():
            if key == "accelerator":
                count = self._fill(value["resourceCount"], given)
                limits |= {self._fill(value["resourceType"], given): count} if count else {}
            else:
                amount = self._fill(value, given)
                requests |= {RESOURCES[key]: amount} if amount else {}
        return {"requests": requests, "limits": limits}

    def _place(self, pod: dict[str, Any], platform: dict[str, Any], given: dict[str, Any]) -> None:
        """What kfp-kubernetes adds to a pod."""
        (main,) = pod["containers"]

        def value(source: dict[str, Any]) -> Any:
            if "componentInputParameter" in source:
                return given[source["componentInputParameter"]]
            return source["runtimeValue"]["constant"]

        for kind, reference, key, name in (
            ("secretAsEnv", "secretKeyRef", "secretKey", "secretNameParameter"),
            ("configMapAsEnv", "configMapKeyRef", "configMapKey", "configMapNameParameter"),
        ):
            for each in platform.pop(kind, []):
                for pair in each["keyToEnv"]:
                    wanted = {"name": value(each[name]), "key": pair[key], "optional": each.get("optional", False)}
                    main["env"].append({"name": pair["envVar"], "valueFrom": {reference: wanted}})
        for each in platform.pop("emptyDirMounts", []):
            _mount_empty(pod, each["volumeName"], each["mountPath"], each.get("medium"))
        if "nodeSelector" in platform:
            pod["nodeSelector"] = value(platform.pop("nodeSelector")["nodeSelectorJson"])
        tolerations = [value(each["tolerationJson"]) for each in platform.pop("tolerations", [])]
        pod["tolerations"] = [each for group in tolerations for each in (group if isinstance(group, list) else [group])]
        assert not platform, f"the platform has more than this backend knows: {sorted(platform)}"

    def _run_pod(self, step: str, name: str, spec: dict[str, Any]) -> dict[str, Any] | None:
        """What the launcher told; None where the pod is gone. AssertionError, with its log, where it failed."""
        labels = {"pipeline/runid": self.run}
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec},
            namespace=self.namespace,
        )
        deadline = time.monotonic() + 900
        while True:
            shown = self.cluster.kubectl(
                "-n", self.namespace, "get", "pod", name, "-o", "json", "--ignore-not-found", check=False
            )
            if not shown.strip():
                return None
            pod = json.loads(shown)
            phase = pod["status"].get("phase")
            if phase == "Succeeded":
                return json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
            assert phase != "Failed", f"{step}: {self.cluster.kubectl('-n', self.namespace, 'logs', name, check=False)}"
            assert time.monotonic() < deadline, f"{step}: {name} does not end: {pod['status']}"
            if phase == "Running" and self.while_running is not None:
                self.while_running(step, name)
            time.sleep(0.3)


def _triggered(task: dict[str, Any], given: dict[str, Any]) -> bool:
    policy = task.get("triggerPolicy")
    if policy is None:
        return True
    found = re.fullmatch(r"inputs\.parameter_values\['(.*?)'\] == '(.*?)'", policy["condition"])
    assert found, f"a condition that this backend does not know: {policy}"
    return given[found[1]] == found[2]


def _mount_empty(pod: dict[str, Any], name: str, path: str, medium: str | None = None) -> None:
    pod["volumes"].append({"name": name, "emptyDir": {"medium": medium} if medium else {}})
    pod["containers"][0]["volumeMounts"].append({"name": name, "mountPath": path})


@pytest.fixture(scope="session")
def load_pipeline(cluster):
    """`load_pipeline(namespace, file)`: a Backend for a compiled pipeline."""
    return lambda namespace, file: Backend.load(cluster, namespace, file)


@pytest.fixture(scope="session")
def corpus(cluster, undisturbed, make_bucket):
    """URI of a folder on S3 with a text. What Python brings along would not do: the images' Python has another."""
    from pydoc_data import topics

    modules = sorted(Path(os.__file__).parent.glob("*.py"))[:120]
    texts = [*topics.topics.values(), *(path.read_text(encoding="utf-8", errors="ignore") for path in modules)]
    with undisturbed():
        bucket = make_bucket()
        cluster.s3.put_object(Bucket=bucket, Key="corpus/text.txt", Body="\n\n".join(texts)[:1_500_000].encode())
    return f"s3://{bucket}/corpus"


@pytest.fixture(scope="session")
def study_file(corpus, tmp_path_factory):
    """The study of parameter allocation, its smoke profile cut to minutes in pods; every stage and step still runs."""
    study = yaml.safe_load((ROOT / "pipelines" / "studies" / "param-allocation.yaml").read_text(encoding="utf-8"))
    for axis in study["axes"].values():
        axis.update(values=axis["values"][1:3], names=axis["names"][1:3])
    smoke = study["profiles"]["smoke"]
    smoke["data"] = {"corpus": {"source": "s3", "path": corpus}, "vocab_size": 2048}
    smoke["config"]["evaluation"]["every_steps"] = 20
    smoke["config"]["checkpoint"]["every_steps"] = 20
    ranking, finals = smoke["stages"]["ranking"], smoke["stages"]["finals"]
    ranking.update(budget={"steps": 120})
    finals.update(budget={"steps": 120}, seeds=2, min_seeds=2)
    for stage in (ranking, finals):
        stage["resources"]["cpu"] = "50m"  # two of the study's own whole cores leave a small node none for a step
    smoke["shakedown"]["steps"] = 8
    smoke["evaluation"].update(max_batches=4, latency=False, throughput=False)
    file = tmp_path_factory.mktemp("study") / "allocation.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def podium(cluster):
    """Runs `podium` on this machine to its end, with the cluster and the store in its environment."""

    def run(*arguments: object, seconds: float = 900, **extra: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PODIUM_"))}
        return subprocess.run(
            [sys.executable, "-c", "from podium.pipelines.cli.main import main; main()", *map(str, arguments)],
            env={**kept, **cluster.environment, "OMP_NUM_THREADS": "1", **extra},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def mlflow_server(cluster, wait_for):
    """`mlflow_server(namespace)`: an MLflow server in a pod of the steps image; returns its address in the cluster."""

    def start(namespace: str) -> str:
        address = f"mlflow.{namespace}.svc"
        container = {
            "name": "server",
            "image": cluster.steps_image,
            "imagePullPolicy": "Never",
            "command": ["mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=1"],
            "args": ["--backend-store-uri=sqlite:////tmp/mlflow.db", "--artifacts-destination=/tmp/artifacts"],
            "env": [
                {"name": "MLFLOW_SERVER_ALLOWED_HOSTS", "value": f"{address}:5000,{address},localhost:*"},
                {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"},  # nobody asks it for any
            ],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "readinessProbe": {"tcpSocket": {"port": 5000}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},  # else a busy node leaves it nothing
        }
        locked = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        labels = {"app": "mlflow"}
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "mlflow", "labels": labels},
                "spec": {"securityContext": locked, "containers": [container]},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "mlflow"},
                "spec": {"selector": labels, "ports": [{"port": 5000}]},
            },
            namespace=namespace,
        )
        ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        wait_for(
            "the MLflow server answers",
            lambda: cluster.kubectl("-n", namespace, "get", "pod", "mlflow", "-o", ready) == "True",
            600,
        )
        return f"http://{address}:5000"

    return start


@dataclass(frozen=True)
class Stored:
    """What a finished run left in its store."""

    results: dict[str, dict[str, Any]]
    """`stage/variant/seed-n` → result.json."""
    documents: dict[str, Any]
    """Every other JSON document of the run, by its key in the run's folder."""
    keys: set[str]
    """Every key in the run's folder."""

    @property
    def winner(self) -> str:
        """Whom the last stage's verdict names."""
        return str(self.documents["verdicts/finals.json"]["winner"])

    @property
    def losses(self) -> dict[str, float]:
        """Each trial's declared result."""
        return {trial: result["final_val_loss"] for trial, result in self.results.items()}


@pytest.fixture(scope="session")
def read_store(cluster):
    """`read_store(uri)`: the one run in a store, or None while there is none."""

    def read(uri: str) -> Stored | None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        pages = cluster.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/runs/")
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        inside = {key.split("/", prefix.count("/") + 3)[-1]: key for key in found}
        if not inside:
            return None

        def load(key: str) -> Any:
            return json.loads(cluster.s3.get_object(Bucket=bucket, Key=inside[key])["Body"].read())

        results = {
            key.removeprefix("trials/").removesuffix("/result.json"): load(key)
            for key in inside
            if key.startswith("trials/") and key.endswith("/result.json")
        }
        documents = {key: load(key) for key in inside if key.startswith("verdicts/") or key == "registration.json"}
        return Stored(results, documents, set(inside))

    return read


@dataclass(frozen=True)
class InPods:
    """The study's compiled pipeline after every step of it ran in a pod, trials as processes of the steps' pods."""

    namespace: str
    store: str
    pipeline: Path
    steps: list[Step]
    stored: Stored
    killed: list[str]
    """Steps whose pod was deleted by force while it ran."""
    seconds: float


@pytest.fixture(scope="session")
def in_pods(
    cluster, undisturbed, make_namespace, make_bucket, study_file, podium, mlflow_server, load_pipeline, read_store
):
    """Compile the study, run its steps in pods one after the other, and kill the first stage's while it trains."""
    with undisturbed():
        return _run_in_pods(
            cluster, make_namespace(), make_bucket(), study_file, podium, mlflow_server, load_pipeline, read_store
        )


def _run_in_pods(cluster, namespace, bucket, study_file, podium, mlflow_server, load_pipeline, read_store) -> InPods:
    store = f"s3://{bucket}/store"
    told = {"data": {"PODIUM_MLFLOW_URI": mlflow_server(namespace)}}
    cluster.kubectl("-n", namespace, "patch", "configmap", "podium-config", "--patch", json.dumps(told))
    pipeline = study_file.with_name("pipeline.yaml")
    compiled = podium("compile", study_file, "--profile", "smoke", "--store", store, "--output", pipeline)
    assert compiled.returncode == 0, compiled.stderr
    backend = load_pipeline(namespace, pipeline)
    killed: list[str] = []

    def kill(step: str, pod: str) -> None:
        # Without a signal, as a step dies when its node does; after a checkpoint, so that there is something to resume.
        if step != "ranking: train" or killed:
            return
        stored = read_store(store)
        if stored and any("/checkpoints/ckpt-step-" in key for key in stored.keys):
            killed.append(step)
            cluster.kubectl("-n", namespace, "delete", "pod", pod, "--grace-period=0", "--force")

    backend.while_running = kill
    began = time.monotonic()
    try:
        steps = backend.run_pipeline()
    except BaseException:
        print(cluster.kubectl("-n", namespace, "get", "pods,events", check=False))
        raise
    seconds = time.monotonic() - began
    return InPods(namespace, store, pipeline, steps, read_store(store), killed, seconds)
