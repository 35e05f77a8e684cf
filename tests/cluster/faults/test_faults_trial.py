"""A trial's pod is killed, drained, preempted or short of memory: its Job ends, and the next attempt goes on."""

from __future__ import annotations

import re
import time

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BASELINE, WIDE, EVERY = "baseline/seed-42", "wide/seed-42", 20
DEVICE = "podium.dev/test-device"


def newest_checkpoint(scene, trial=BASELINE) -> int:
    keys = scene.objects(f"{trial}/checkpoints/ckpt-step-")
    return max((int(re.search(r"step-(\d+)\.pt$", key)[1]) for key in keys), default=0)


def went_on_where_it_saved(scene) -> int:
    """The step: the one at which the trial saved when it was told to end."""
    resumed = scene.resumed()
    said = re.findall(r"SIGTERM: saved at step (\d+)", scene.log())
    assert said in ([str(resumed)], [])  # a log is worth no trial: a put that fails at a pod's end is not waited for
    return resumed


@pytest.mark.core
def test_a_killed_pods_trial_goes_on_from_its_last_checkpoint(scene, sigkill, undisturbed):
    conductor = scene.conduct()
    pod = scene.trains()

    def saved() -> int:
        step = scene.step()
        return step if newest_checkpoint(scene) >= step else 0

    came = scene.wait_for("the last step that was evaluated is saved", saved, 60)
    sigkill(pod)
    log = scene.cluster.kubectl("-n", scene.namespace, "logs", pod["metadata"]["name"])
    last = max(map(int, re.findall(r"^step (\d+)  validation", log, re.MULTILINE)))
    assert conductor.ends() == 0, conductor.said()
    resumed = scene.resumed()
    print(f"killed between steps {last} and {last + EVERY}, went on from {resumed}; an interval is {EVERY} steps")
    first, second = scene.attempts()
    assert (first["code"], first["crashed"], second["code"]) == (-9, True, 0)
    assert resumed >= came
    assert last - resumed <= EVERY
    assert scene.picture() == undisturbed[BASELINE]
    assert len(scene.attempts(WIDE)) == 1
    assert scene.picture(WIDE) == undisturbed[WIDE]


def test_a_preempted_trial_waits_for_its_device_and_goes_on_where_it_saved(scene, undisturbed, cluster, device):
    scene.jobs = {"gpu_classes": {"test": {"resource": device}}}
    scene.study = scene.study.replace("resources: {parallel: 2}", "resources: {gpu_class: test, gpus_per_trial: 1}")
    conductor = scene.conduct()
    scene.trains()
    began = time.monotonic()
    locked = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    user = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": "main",
        "image": cluster.steps_image,
        "imagePullPolicy": "Never",
        "command": ["sleep", "6"],
        "securityContext": locked,
        "resources": {"limits": {device: 1}},
    }
    priority = f"podium-t-{scene.namespace[-8:]}"
    cluster.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": priority},
            "value": 1000,
        }
    )
    try:
        spec = {"restartPolicy": "Never", "priorityClassName": priority, "securityContext": user}
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "urgent"},
                "spec": {**spec, "containers": [container]},
            },
            namespace=scene.namespace,
        )
        assert conductor.ends() == 0, conductor.said()
    finally:
        cluster.kubectl("delete", "priorityclass", priority)
    first, *_, last = scene.attempts()
    print(f"preempted and done {time.monotonic() - began:.1f} s later: {conductor.said()}")
    assert (first["code"], first["crashed"], last["code"]) == (75, False, 0)
    print(f"went on from step {went_on_where_it_saved(scene)}: none twice")
    assert scene.picture() == undisturbed[BASELINE]


def test_a_trial_without_enough_memory_is_a_result_that_says_so(scene):
    scene.jobs = {"memory": "150Mi"}
    conductor = scene.conduct()
    assert conductor.ends() in (0, 5), conductor.said()  # 5 where the other trial was still at it
    result = scene.result()
    print(f"{result['status']}: {result['reason']}")
    assert result["status"] == "out_of_memory"
    assert "150Mi" in result["reason"]
    assert [attempt["crashed"] for attempt in scene.attempts()] == [True, True]
    assert "baseline" in conductor.said()
    assert scene.result(WIDE) is None or scene.result(WIDE)["status"] == "out_of_memory"


@pytest.mark.disruptive
def test_a_drained_trial_saves_and_goes_on_without_a_step_lost(scene, undisturbed, cluster):
    conductor = scene.conduct()
    scene.trains()
    try:
        began = time.monotonic()
        selector = "podium.dev/variant=baseline"
        cluster.kubectl("drain", cluster.node, "--pod-selector", selector, "--delete-emptydir-data", "--timeout=60s")
        print(f"drained in {time.monotonic() - began:.1f} s")
    finally:
        cluster.kubectl("uncordon", cluster.node)
    assert conductor.ends() == 0, conductor.said()
    first, *_, last = scene.attempts()
    print(f"went on from step {went_on_where_it_saved(scene)}: none twice")
    assert (first["code"], first["crashed"], last["code"]) == (75, False, 0)
    assert scene.picture() == undisturbed[BASELINE]
    assert scene.picture(WIDE) == undisturbed[WIDE]
