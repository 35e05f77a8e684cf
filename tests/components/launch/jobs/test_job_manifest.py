"""What a trial asks of a cluster: its rights, its resources, its names."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from podium.components.launch.job_manifest import GpuClass, JobMaker, JobSettings, RunOnCluster, label
from podium.components.launch.launcher import Task
from podium.components.study.schema import Resources

RUN = RunOnCluster("s3://bucket/store", "study-12345678", "s3://bucket/store/runs/study-12345678", "once", "ranking")


def task(**fields: Any) -> Task:
    given = {
        "name": "ranking/emb25/seed-42",
        "argv": [sys.executable, "-m", "podium.trainer", "train", "--run-spec", "s3://bucket/x"],
        "log": "logs/ranking/emb25-seed-42.log",
        "identity": "0123456789abcdef",
        "folder": "trials/ranking/emb25/seed-42",
        "labels": {"variant": "emb25", "seed": "42"},
        **fields,
    }
    return Task(**given)


def make(resources: Resources | None = None, owner: Any = None, task_fields: Any = None, **settings: Any) -> Any:
    maker = JobMaker(RUN, JobSettings(**settings), resources or Resources(), owner, "digest")
    return maker.job(task(**(task_fields or {})))


def pod_of(job: Any) -> Any:
    return job["spec"]["template"]["spec"]


def test_a_pod_keeps_to_pod_security_restricted_and_writes_to_two_places() -> None:
    pod = pod_of(make())
    container = pod["containers"][0]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp", "/dev/shm"]
    assert all("emptyDir" in volume for volume in pod["volumes"])
    assert pod["automountServiceAccountToken"] is False
    assert pod["restartPolicy"] == "Never"


def test_a_job_makes_one_attempt_and_is_told_apart_by_its_labels() -> None:
    job = make(labels={"team": "a", "podium.dev/run": "forged"}, annotations={"note": "b"})
    assert job["spec"]["backoffLimit"] == 0
    assert "suspend" not in job["spec"]
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["labels"] == {
            "app.kubernetes.io/name": "podium",
            "app.kubernetes.io/component": "trial",
            "podium.dev/run": "study-12345678",
            "podium.dev/stage": "ranking",
            "podium.dev/variant": "emb25",
            "podium.dev/seed": "42",
            "podium.dev/store": RUN.labels["podium.dev/store"],
            "sidecar.istio.io/inject": "false",
            "team": "a",
        }
        assert metadata["annotations"] == {
            "podium.dev/task": "ranking/emb25/seed-42",
            "podium.dev/run-uri": "s3://bucket/store/runs/study-12345678",
            "podium.dev/folder": "s3://bucket/store/runs/study-12345678/trials/ranking/emb25/seed-42",
            "note": "b",
        }


def test_the_images_own_python_runs_the_trainer_behind_the_entry() -> None:
    command = pod_of(make())["containers"][0]["command"]
    entry, trainer = command[: command.index("--")], command[command.index("--") + 1 :]
    assert entry[:3] == ["python", "-m", "podium.components.launch.job_entry"]
    assert entry[entry.index("--log") + 1] == "s3://bucket/store/runs/study-12345678/logs/ranking/emb25-seed-42.log"
    assert entry[entry.index("--sources") + 1] == "digest"
    assert trainer == ["python", "-m", "podium.trainer", "train", "--run-spec", "s3://bucket/x"]


def test_memory_and_gpus_are_limits_and_processors_are_not() -> None:
    resources = Resources(gpus_per_trial=2, gpu_class="h100", cpu="8", memory="64Gi")
    classes = {"h100": GpuClass(node_selector={"gpu": "h100"}, tolerations=[{"key": "gpu", "operator": "Exists"}])}
    pod = pod_of(make(resources, task_fields={"devices": 2}, gpu_classes=classes, cpu="1", memory="1Gi"))
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
    }
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    plain = pod_of(make(cpu="1"))
    assert plain["containers"][0]["resources"] == {"requests": {"cpu": "1"}}
    assert "nodeSelector" not in plain


def test_the_sites_settings_reach_the_pod() -> None:
    job = make(
        image="site/trainer:2",
        image_pull_policy="Always",
        image_pull_secrets=["registry"],
        service_account="podium-trial",
        priority_class="low",
        deadline_seconds=60,
        ttl_seconds=5,
        grace_seconds=33,
        shared_memory="1Gi",
        scratch="2Gi",
        secret="mine",
        env={"NCCL_DEBUG": "INFO"},
    )
    pod, container = pod_of(job), pod_of(job)["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == ("site/trainer:2", "Always")
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("podium-trial", "low")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["terminationGracePeriodSeconds"] == 33
    assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["ttlSecondsAfterFinished"]) == (60, 5)
    assert [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]] == ["2Gi", "1Gi"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": "podium-config", "optional": True}},
        {"secretRef": {"name": "mine", "optional": False}},
    ]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment == {
        "PODIUM_ATTEMPT": "1",
        "PODIUM_IMAGE": "site/trainer:2",
        "PODIUM_PATIENCE_SECONDS": "600",
        "NCCL_DEBUG": "INFO",
    }


def test_a_job_is_owned_by_the_workflow_and_a_service_by_its_job() -> None:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1"}
    assert make(owner=owner)["metadata"]["ownerReferences"] == [owner]
    assert "ownerReferences" not in make()["metadata"]


def test_names_fit_a_rank_and_labels_fit_kubernetes() -> None:
    long = task(name=f"{'s' * 60}/{'v' * 60}_X/seed-12345678", attempt=123)
    name = RUN.job_name(long)
    assert len(f"{name}-99") <= 63
    assert name == name.lower()
    assert label("fine-1.0") == "fine-1.0"
    assert len(label("x" * 200)) <= 63
    assert label("a b") != label("a-b")


def test_gpus_are_dealt_out_to_machines_in_equal_parts() -> None:
    with pytest.raises(ValidationError, match="gpus_per_trial must be a multiple of nodes = 2"):
        Resources(nodes=2, gpus_per_trial=3)
    assert Resources(nodes=2).devices == 2
    assert Resources(nodes=2, gpus_per_trial=8).devices == 8
    assert Resources().devices == 1
