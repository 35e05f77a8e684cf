"""Submitting to a Kubeflow API that runs in the cluster, from outside by kubectl and from inside by its name.

The API is the stand-in of `tests/kfp_api`, in a pod of the steps' image; a cluster of this kind has no KFP.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from podium.components.study.layout import note_run
from podium.components.study.load import load_study, read_study_text
from podium.components.study.run import Run

pytestmark = pytest.mark.cluster

SERVER = Path(__file__).parent.parent / "kfp_api" / "server.py"
PODIUM = [sys.executable, "-c", "from podium.pipelines.cli.main import main; main()"]
STUDY = "param-allocation"
LOCKED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
USER = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.fixture
def kubeflow(cluster, namespace):
    """The namespace in which the stand-in serves under the name of KFP's Service; every run succeeds after a second."""
    labels = {"app": "ml-pipeline"}
    container = {
        "name": "api",
        "image": cluster.steps_image,
        "imagePullPolicy": "Never",
        "command": ["python", "/server/server.py", "--host", "0.0.0.0", "--port", "8888", "--finish", "1"],
        "ports": [{"containerPort": 8888}],
        "readinessProbe": {"httpGet": {"path": "/apis/v2beta1/healthz", "port": 8888}, "periodSeconds": 1},
        "securityContext": LOCKED,
        "volumeMounts": [{"name": "server", "mountPath": "/server"}],
    }
    volumes = [{"name": "server", "configMap": {"name": "kfp-api"}}]
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kfp-api"},
            "data": {"server.py": SERVER.read_text(encoding="utf-8")},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "ml-pipeline"},
            "spec": {"selector": labels, "ports": [{"port": 8888}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "ml-pipeline", "labels": labels},
            "spec": {"containers": [container], "volumes": volumes, "securityContext": USER},
        },
        namespace=namespace,
    )
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/ml-pipeline", "--timeout=120s")
    return namespace


@pytest.fixture
def podium(cluster, kubeflow, store, tmp_path):
    """Runs the command on this machine, with the cluster's kubeconfig and its store."""

    def run(*arguments):
        environment = {**cluster.environment, "PODIUM_STORE": store, "XDG_STATE_HOME": str(tmp_path)}
        return subprocess.run(
            [*PODIUM, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200
        )

    return run


def test_studies_are_uploaded_and_submitted_by_kubectls_port_forward(podium, kubeflow):
    forward = ["--port-forward", "--kubeflow-namespace", kubeflow]
    first = podium("upload", STUDY, *forward, "--json")
    assert first.returncode == 0, first.stderr
    second = podium("upload", STUDY, *forward, "--json")
    outcomes = [json.loads(each.stdout)["pipelines"][0]["outcome"] for each in (first, second)]
    assert outcomes == ["new version", "unchanged"]
    started = podium("submit", STUDY, "--profile", "smoke", *forward, "--json")
    assert started.returncode == 0, started.stderr
    assert uuid.UUID(json.loads(started.stdout)["id"])


def test_a_runs_status_is_read_from_its_store_on_s3_by_the_id_that_submit_gave(
    podium, kubeflow, cluster, store, monkeypatch
):
    for name, value in cluster.environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    started = podium(
        "submit", STUDY, "--profile", "smoke", "--port-forward", "--kubeflow-namespace", kubeflow, "--json"
    )
    kubeflow_run = json.loads(started.stdout)["id"]
    run = Run.create(store, load_study(STUDY, profile="smoke"), "smoke", None, read_study_text(STUDY)[0])
    note_run(run.store, kubeflow_run, run.id)
    found = podium("status", kubeflow_run, "--store", store, "--json")
    assert json.loads(found.stdout)["run_id"] == run.id, found.stderr


def test_a_pod_finds_kubeflow_by_its_name_and_uploads_without_torch(kubeflow, cluster, run_pod, store):
    host = f"http://ml-pipeline.{kubeflow}.svc.cluster.local:8888"
    command = f"podium upload {STUDY} --store {store} && podium upload {STUDY} --store {store} && podium doctor --json"
    environment = {"KF_PIPELINES_ENDPOINT": host, "PODIUM_STORE": store, "HOME": "/tmp"}
    container = {
        "image": cluster.steps_image,
        "command": ["sh", "-c", command],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    ended = run_pod(kubeflow, container, {"volumes": [{"name": "scratch", "emptyDir": {}}]}, 200)
    lines = ended.log.splitlines()
    assert lines[0].startswith(f"{STUDY}: new version"), ended.log
    assert lines[1].startswith(f"{STUDY}: unchanged")
    checks = {each["check"]: each["status"] for each in json.loads("\n".join(lines[2:]))["checks"]}
    assert (checks["Kubeflow"], checks["Store"]) == ("ok", "ok"), ended.log
    # a pod of the trials' account may not do what a conductor does, and the doctor says so
    assert (checks["Rights"], ended.code) == ("failed", 2)
