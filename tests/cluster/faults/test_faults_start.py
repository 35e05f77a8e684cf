"""A trial's pod can't start: no such image, no node with its GPU, no secret. It is said in words, and costs nothing."""

from __future__ import annotations

import json
import time

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BASELINE = "baseline/seed-42"


def explained(scene, conductor, words: str, seconds: float = 90.0) -> str:
    """What the store says that the baseline waits for. How soon (30 s on a quiet machine) is `jobs/`'s to hold."""
    scene.wait_for("the Job", lambda: scene.listed("jobs") or conductor.process.poll() is not None, 120)
    began = time.monotonic()

    def told() -> str:
        found = scene.one("/waiting.json")
        why = json.loads(found).get(f"ranking/{BASELINE}", "") if found else ""
        return why if words in why else ""

    why = scene.wait_for(f"waiting.json says {words!r}", told, seconds)
    print(f"explained {time.monotonic() - began:.1f} s after the Job was seen: {why}")
    return why


@pytest.mark.core
@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        (
            {"image": "podium/nowhere-python:1", "image_pull_policy": "Never"},
            "the image podium/nowhere-python:1 can't be",
        ),
        ({"secret": "not-made"}, "the secret not-made is missing"),
    ],
    ids=["image", "secret"],
)
def test_what_waiting_does_not_mend_is_explained_and_then_broken(scene, jobs, words):
    scene.jobs = {**jobs, "start_seconds": 15}
    conductor = scene.conduct()
    explained(scene, conductor, words)
    assert conductor.ends() in (0, 5), conductor.said()  # 5 where the other trial was still waiting
    result = scene.result()
    print(f"{result['status']}: {result['reason']}")
    assert result["status"] == "broken"
    assert "could not be started" in result["reason"]
    assert words in result["reason"]
    assert result["device_seconds"] == 0
    assert "the baseline ranking/baseline/seed-42 broken" in conductor.said()


def test_a_gpu_that_no_node_has_is_explained_and_waited_for(scene):
    scene.jobs = {"gpu_classes": {"h900": {"resource": "nvidia.com/gpu", "node_selector": {"gpu": "h900"}}}}
    scene.study = scene.study.replace("resources: {parallel: 2}", "resources: {gpu_class: h900, gpus_per_trial: 1}")
    conductor = scene.conduct()
    explained(scene, conductor, "no node can take it")
    assert conductor.process.poll() is None
    conductor.process.terminate()
    assert conductor.ends() == 130, conductor.said()
    scene.wait_for("the Jobs are gone", lambda: not scene.listed("jobs"), 60)
    assert scene.result() is None
    assert all(attempt["seconds"] == 0 and not attempt["crashed"] for attempt in scene.attempts())
