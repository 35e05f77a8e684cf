"""Ending what nobody conducts, and the rights that all of it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from podium.components.launch import job_cluster, reap
from podium.components.launch.job_cluster import CONDUCTOR_RULES, REAPER_RULES
from podium.components.launch.job_manifest import RunOnCluster
from podium.components.launch.launcher import Task
from podium.components.study.run import Run
from podium.trainer.trial.lease import Lease

VERBS = {"POST": "create", "DELETE": "delete", "WATCH": "watch", "GET": "list"}


def start(launch: Any, run_uri: str, run_id: str) -> None:
    launch(run=RunOnCluster("s3://bucket/store", run_id, run_uri, "1", "first")).start(
        Task("first/a/seed-1", ["x"], "l")
    )


def test_jobs_of_a_run_whose_counter_stands_still_are_ended_and_no_others(
    launch: Any, open_cluster: Any, api: Any
) -> None:
    beats = {"file:///dead": iter(lambda: "holder-7", None), "file:///gone": iter(lambda: "", None)}
    live = iter(range(1000))

    def beat(uri: str) -> str:
        return (
            f"holder-{next(live)}"
            if uri == "file:///live"
            else reap.UNKNOWN
            if uri == "file:///away"
            else next(beats[uri])
        )

    for name in ("dead", "gone", "live", "away"):
        start(launch, f"file:///{name}", name)
    start(launch, "file:///dead", "dead-but-over")
    api.succeed(list(api.jobs)[-1])
    ended = reap.reap(open_cluster(), patience_seconds=0.3, look_seconds=0.1, beat=beat)
    assert len(ended) == 2
    assert {job["metadata"]["labels"]["podium.dev/run"] for job in api.jobs.values()} == {
        "live",
        "away",
        "dead-but-over",
    }


def test_a_beat_is_read_from_the_runs_lease(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert reap.read_beat(run.uri) == ""
    with Lease(run.storage, "lease.json", what="run") as lease:
        assert reap.read_beat(run.uri).startswith(lease.token)
    assert reap.read_beat("ftp://nowhere") == reap.UNKNOWN


def test_the_reaper_without_a_cluster_fails_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert reap.main([]) == 1
    assert "launcher job needs a cluster" in capsys.readouterr().err


def allowed(rules: list[job_cluster.Rule]) -> set[tuple[str, str]]:
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_a_conductor_asks_for_nothing_that_its_role_does_not_allow(
    launch: Any, api: Any, ends: Any, until: Any, count: Any
) -> None:
    launcher = launch(nodes=2)
    for variant in "ab":
        launcher.start(Task(f"first/{variant}/seed-1", ["x"], "l"))
    first = next(iter(api.jobs))
    api.fail(first, 1)
    ends(launcher)
    until(launcher, lambda: len(api.jobs) == 2)
    launcher.stop()
    ends(launcher)
    asked = {(VERBS[method], resource) for method, resource in (key.split() for key in count(launcher))}
    assert {("create", "jobs"), ("create", "services"), ("list", "pods"), ("delete", "jobs")} <= asked
    asked = {("get", "pods/log") if resource.endswith("log") else (verb, resource) for verb, resource in asked}
    assert asked <= allowed(CONDUCTOR_RULES)
    assert "secrets" not in {resource for _, resource in allowed(CONDUCTOR_RULES)}
    assert allowed(REAPER_RULES) == {("list", "jobs"), ("delete", "jobs")}


def test_the_roles_are_printed_for_kubectl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr("sys.argv", ["job_cluster", "mine"])
    job_cluster.main()
    printed = json.loads(capsys.readouterr().out)
    assert [item["metadata"]["name"] for item in printed["items"]] == ["mine-conductor", "mine-reaper"]
