"""Why a pod does not run, from what a real cluster says."""

from __future__ import annotations

from typing import Any

import pytest

from podium.components.launch.job_state import explain


def job(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "j", "uid": "u", "labels": spec.pop("labels", {})},
        "spec": {"parallelism": 1, **spec},
        "status": {},
    }


def pod(message: str = "", waiting: dict[str, str] | None = None) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": "Pending"}
    if message:
        status["conditions"] = [{"type": "PodScheduled", "status": "False", "message": message}]
    if waiting is not None:
        status["containerStatuses"] = [{"name": "trial", "image": "site/trainer:1", "state": {"waiting": waiting}}]
    resources = {"requests": {"nvidia.com/gpu": "4"}}
    return {
        "metadata": {"name": "p", "ownerReferences": [{"uid": "u"}]},
        "spec": {"containers": [{"name": "trial", "resources": resources}]},
        "status": status,
    }


def warning(message: str, kind: str = "Pod", name: str = "p", time: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"message": message, "involvedObject": {"kind": kind, "name": name}, "lastTimestamp": time}


NO_CLAIMS = ". preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu" + NO_CLAIMS,
            "no node can take it, of 1 in the cluster: 1 without enough free nvidia.com/gpu (it asks for 4)",
        ),
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: h100}, 2 node(s) didn't match Pod's node "
            "affinity/selector" + NO_CLAIMS,
            "no node can take it, of 3 in the cluster: 1 with a taint that it does not tolerate {gpu: h100}, "
            "2 without the labels that its GPU class asks for",
        ),
        (
            "0/2 nodes are available: 2 node(s) were unschedulable" + NO_CLAIMS,
            "no node can take it, of 2 in the cluster: 2 node(s) were unschedulable",
        ),
        ("no nodes available to schedule pods", "no node can take it: no nodes available to schedule pods"),
        ("Scheduling is blocked due to non-empty scheduling gates", "held back by a scheduling gate, as queues do"),
    ],
)
def test_a_pod_without_a_node_waits_for_one(message: str, words: str) -> None:
    pending = explain(job(), [pod(message)])
    assert (pending.words, pending.stuck) == (words, False)


@pytest.mark.parametrize(
    ("waiting", "warnings", "words"),
    [
        (
            {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "site/trainer:1"'},
            [warning('Failed to pull image "site/trainer:1": not found'), warning("Error: ErrImagePull")],
            'the image site/trainer:1 can\'t be pulled: Failed to pull image "site/trainer:1": not found',
        ),
        (
            {"reason": "ErrImageNeverPull", "message": 'Container image "x" is not present with pull policy of Never'},
            [],
            'the image site/trainer:1 can\'t be pulled: Container image "x" is not present with pull policy of Never',
        ),
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "podium-credentials" not found'},
            [],
            "the secret podium-credentials is missing",
        ),
        (
            {"reason": "CreateContainerConfigError", "message": 'configmap "podium-config" not found'},
            [],
            "the config map podium-config is missing",
        ),
        (
            {"reason": "ContainerCreating"},
            [warning('MountVolume.SetUp failed for volume "data" : secret "x" not found')],
            'a volume can\'t be mounted: MountVolume.SetUp failed for volume "data" : secret "x" not found',
        ),
        (
            {"reason": "ContainerCreating"},
            [warning("Failed to create pod sandbox: no network")],
            "its pod can't start: Failed to create pod sandbox: no network",
        ),
    ],
)
def test_what_waiting_does_not_mend_is_told_apart(
    waiting: dict[str, str], warnings: list[dict[str, Any]], words: str
) -> None:
    pending = explain(job(), [pod(waiting=waiting)], warnings)
    assert (pending.words, pending.stuck) == (words, True)


@pytest.mark.parametrize(
    ("message", "words", "stuck"),
    [
        (
            'Error creating: pods "j-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=4, '
            "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8",
            "the namespace's quota is used up: gpus, requested: requests.nvidia.com/gpu=4, "
            "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8",
            False,
        ),
        (
            'Error creating: pods "j-x" is forbidden: error looking up service account a/podium-trial: '
            'serviceaccount "podium-trial" not found',
            "the service account podium-trial does not exist",
            True,
        ),
        (
            'Error creating: pods "j" is forbidden: violates PodSecurity "restricted:latest": host namespaces',
            'the namespace\'s Pod Security refuses its pod: Error creating: pods "j" is forbidden: violates '
            'PodSecurity "restricted:latest": host namespaces',
            True,
        ),
        (
            'Error creating: pods "j" is forbidden: no PriorityClass with name urgent was found',
            'its priority class does not exist: Error creating: pods "j" is forbidden: no PriorityClass with name '
            "urgent was found",
            True,
        ),
    ],
)
def test_a_pod_that_cannot_be_created_is_explained_by_its_jobs_events(message: str, words: str, stuck: bool) -> None:
    others = warning("Error creating: something else", kind="Job", name="another")
    pending = explain(job(), [], [warning(message, kind="Job", name="j"), others])
    assert (pending.words, pending.stuck) == (words, stuck)


def test_a_missing_volume_is_no_lack_of_nodes() -> None:
    message = '0/1 nodes are available: persistentvolumeclaim "corpus" not found' + NO_CLAIMS
    pending = explain(job(), [pod(message)])
    assert pending.stuck
    assert pending.words.startswith(
        "its volume is missing or not bound: 0/1 nodes are available: persistentvolumeclaim"
    )


def test_a_suspended_job_is_queued_whatever_else_is_said() -> None:
    queued = job(suspend=True, labels={"kueue.x-k8s.io/queue-name": "research"})
    assert explain(queued, [pod("0/1 nodes")]).words == "queued by Kueue in research"
    assert explain(job(suspend=True), []).words == "suspended: somebody has to let the Job go on"


def test_of_several_machines_the_one_that_is_stuck_speaks() -> None:
    stuck = pod(waiting={"reason": "CreateContainerConfigError", "message": 'secret "s" not found'})
    pending = explain(job(parallelism=2), [pod("0/1 nodes are available: 1 Insufficient cpu."), stuck])
    assert pending.words == "the secret s is missing"


def test_old_words_about_a_pod_that_is_there_now_are_not_repeated() -> None:
    old = warning("Error creating: exceeded quota: gpus", kind="Job", name="j")
    running = pod()
    running["status"] = {"phase": "Running"}
    assert explain(job(), [running], [old]).words == "its pods are starting"
