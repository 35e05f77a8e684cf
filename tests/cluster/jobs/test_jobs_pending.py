"""Why a trial's pod does not run is said in words within 30 seconds, by the real cluster's own messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.launch.job import JobLauncher
from podium.components.launch.job_manifest import GpuClass, JobMaker, JobSettings, RunOnCluster
from podium.components.launch.launcher import Task
from podium.components.study.schema import Resources

pytestmark = pytest.mark.cluster

QUOTA = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None, str]] = {
    "no node has that many GPUs": (
        {"gpus_per_trial": 64},
        {},
        None,
        "no node can take it, of 1 in the cluster: 1 without enough free nvidia.com/gpu (it asks for 64)",
    ),
    "no node has the labels of the GPU class": (
        {"gpus_per_trial": 1, "gpu_class": "h900"},
        {"gpu_classes": {"h900": GpuClass(node_selector={"gpu": "h900"})}},
        None,
        "no node can take it, of 1 in the cluster: 1 without the labels that its GPU class asks for",
    ),
    "the quota of GPUs is used up": (
        {"gpus_per_trial": 1},
        {},
        {**QUOTA, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}},
        "the namespace's quota is used up: few, requested: requests.nvidia.com/gpu=1",
    ),
    "the quota of Jobs is used up": (
        {},
        {},
        {**QUOTA, "spec": {"hard": {"count/jobs.batch": "0"}}},
        "the namespace's quota is used up",
    ),
    "the image does not exist": (
        {},
        {"image": "podium/python-no-such:1"},
        None,
        "the image podium/python-no-such:1 can't be pulled: ",
    ),
    "the image may not be pulled": (
        {},
        {"image": "podium/python-no-such:1", "image_pull_policy": "Never"},
        None,
        "the image podium/python-no-such:1 can't be pulled: ",
    ),
    "the secret is missing": ({}, {"secret": "no-such"}, None, "the secret no-such is missing"),
    "the config map is missing": ({}, {"config_map": "no-such"}, None, "the config map no-such is missing"),
    "the service account is missing": (
        {},
        {"service_account": "nobody"},
        None,
        "the service account nobody does not exist",
    ),
    "the priority class is missing": ({}, {"priority_class": "urgent"}, None, "its priority class does not exist: "),
    "Kueue keeps it": ({}, {"queue": "research"}, None, "queued by Kueue in research"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trial_that_does_not_start_says_why(
    cluster: Any, namespace: str, connect: Callable[[], Any], case: str
) -> None:
    resources, settings, quota, words = CASES[case]
    if quota is not None:
        cluster.apply(quota, namespace=namespace)
        time.sleep(1.0)  # for the quota to be known to the server that admits
    given = {"image": cluster.trainer_image, "image_pull_policy": "IfNotPresent", "grace_seconds": 10, "cpu": "10m"}
    run = RunOnCluster("s3://bucket/store", "pending-12345678", "s3://bucket/store/runs/pending-12345678", "1", "first")
    maker = JobMaker(run, JobSettings(**{**given, "scratch": "64Mi", **settings}), Resources(**resources))
    launcher = JobLauncher(connect(), maker, slots=1)
    began = time.monotonic()
    devices = int(resources.get("gpus_per_trial", 0))
    launcher.start(Task("first/a/seed-1", ["python", "-c", "pass"], "logs/a.log", devices=devices))
    said: list[str] = []
    try:
        while not said or not said[-1].startswith(words):
            assert time.monotonic() - began < 30, f"said {said}"
            assert launcher.poll(0.5) == []
            now = launcher.waiting().get("first/a/seed-1", "")
            said += [now] if now and said[-1:] != [now] else []
        print(f"{case}: after {time.monotonic() - began:.1f} s: {said[-1]}")
    finally:
        launcher.close()
