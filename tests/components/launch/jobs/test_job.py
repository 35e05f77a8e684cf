"""The Job launcher against a stand-in API server: what it creates, follows, adopts, explains and never does twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.launch import job
from podium.components.launch.job import JobLauncher
from podium.components.launch.launcher import Task, TaskEnd
from podium.trainer.trial.errors import ExitCode, UserError

Launch = Callable[..., JobLauncher]
Ends = Callable[..., list[TaskEnd]]
Until = Callable[..., None]


def task(name: str = "first/a/seed-42", attempt: int = 1, **fields: Any) -> Task:
    return Task(name, ["python", "-c", "pass"], f"logs/{name}.log", attempt=attempt, identity="f00d", **fields)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(job, "QUOTA_SECONDS", 0.1)
    monkeypatch.setattr(job, "AFTER_SECONDS", 0.1)
    monkeypatch.setattr(job, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(job, "TURN_SECONDS", 0.05)


def only(api: Any) -> str:
    (name,) = api.jobs
    return str(name)


def test_a_trial_that_succeeds_costs_one_call_beside_what_all_share(
    launch: Launch, api: Any, ends: Ends, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "AFTER_SECONDS", 60)
    launcher = launch()
    tasks = [task(f"first/a/seed-{seed}") for seed in range(20)]
    for each in tasks:
        launcher.start(each)
    for name in list(api.jobs):
        api.run(name)
    for name in list(api.jobs):
        api.succeed(name)
    ended = ends(launcher, 20)
    assert {each.code for each in ended} == {0}
    assert {each.task.name for each in ended} == {each.name for each in tasks}
    calls = count(launcher)
    assert calls.pop("WATCH jobs") <= 2
    assert calls == Counter({"POST jobs": 20, "GET jobs": 1, "GET pods": 1})


def test_the_image_is_known_by_its_digest(launch: Launch, api: Any, ends: Ends, until: Until) -> None:
    launcher = launch(image="podium/python-trainer:1.0")
    launcher.start(task())
    api.run(only(api))
    until(launcher, lambda: launcher._look.image is not None)
    api.succeed(only(api))
    assert ends(launcher)[0].image == "podium/python-trainer:1.0@sha256:" + "a" * 64


def test_a_launcher_that_is_started_again_follows_what_runs_and_starts_nothing_twice(
    launch: Launch, api: Any, ends: Ends, until: Until, count: Any
) -> None:
    first = launch()
    first.start(task())
    api.run(only(api))
    until(first, lambda: not first.waiting() and first.running()["first/a/seed-42"] > 0)
    second = launch()
    assert second.left(task()) == 1
    assert second.left(task("first/b/seed-42")) is None
    second.start(task(seconds=100.0))
    assert second.running()["first/a/seed-42"] >= 100
    assert len(api.jobs) == 1
    assert count(second)["POST jobs"] == 0
    api.succeed(only(api))
    assert ends(second)[0].code == 0


def test_a_job_that_ended_while_nobody_looked_is_reported(launch: Launch, api: Any, ends: Ends) -> None:
    launch().start(task())
    api.fail(only(api), 1, message="it broke")
    api.logs[next(iter(api.pods))] = "one\ntwo\n"
    launcher = launch()
    launcher.start(task())
    ended = ends(launcher)[0]
    assert (ended.code, ended.seconds, ended.tail) == (1, 5.0, ["one", "two"])


def test_a_job_that_is_there_though_nobody_listed_it_is_adopted(
    launch: Launch, api: Any, ends: Ends, count: Any
) -> None:
    late, early = launch(), launch()
    early.start(task())
    late.start(task())
    assert len(api.jobs) == 1
    assert count(late)["POST jobs"] == 1
    api.succeed(only(api))
    assert ends(late)[0].code == 0


def test_attempts_stores_and_fingerprints_have_jobs_of_their_own(launch: Launch, api: Any) -> None:
    launcher = launch()
    launcher.start(task())
    launcher.start(task(attempt=2))
    launcher.start(Task("first/a/seed-42", ["python"], "log", identity="beef"))
    assert len(api.jobs) == 3
    assert all(re.fullmatch(r"podium-first-a-42-[0-9a-f]{12}-[12]", name) for name in api.jobs)


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        ({"code": 1}, 1, ""),
        ({"code": 2}, 2, ""),
        ({"code": 137}, -9, ""),
        ({"code": 75}, ExitCode.RUN_AGAIN, ""),
        ({"code": 137, "reason": "OOMKilled"}, -9, "out of memory"),
        (
            {"code": 127, "reason": "StartError", "message": "no python"},
            127,
            "its container could not start: no python",
        ),
        (
            {"code": 143, "conditions": [{"type": "DisruptionTarget", "status": "True", "message": "preempted"}]},
            ExitCode.RUN_AGAIN,
            "its pod was taken away: preempted",
        ),
    ],
)
def test_how_a_pod_ended_is_how_its_task_did(
    launch: Launch, api: Any, ends: Ends, failure: dict[str, Any], code: int, reason: str
) -> None:
    launcher = launch()
    launcher.start(task())
    api.run(only(api))
    api.fail(only(api), **failure)
    ended = ends(launcher)[0]
    assert (ended.code, ended.reason) == (code, reason)
    assert ended.out_of_memory == (reason == "out of memory")
    assert ended.hosts == (f"{only(api)}-0-abcde",)


def test_a_pod_that_the_kubelet_evicted_failed_by_what_it_took(launch: Launch, api: Any, ends: Ends) -> None:
    launcher = launch()
    launcher.start(task())
    words = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '
    disrupted = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
    api.pod(only(api), phase="Failed", reason="Evicted", message=words, conditions=disrupted)
    api.fail(only(api), pod=False)
    ended = ends(launcher)[0]
    assert (ended.code, ended.reason) == (1, f"evicted: {words.strip()}")


def test_a_pod_that_is_gone_is_judged_by_the_words_of_its_job(launch: Launch, api: Any, ends: Ends) -> None:
    launcher = launch()
    for number, (message, reason) in enumerate(
        [
            ("Pod ns/p has condition DisruptionTarget matching FailJob rule at index 1", "PodFailurePolicy"),
            (
                "Container trial for pod ns/p failed with exit code 2 matching FailJob rule",
                "PodFailurePolicy",
            ),
            ("Job was active longer than specified deadline", "DeadlineExceeded"),
            ("Job has reached the specified backoff limit", "BackoffLimitExceeded"),
        ]
    ):
        launcher.start(task(f"first/v{number}/seed-42"))
        api.fail(list(api.jobs)[-1], pod=False, job_condition={"message": message, "reason": reason})
    ended = {each.task.name: each.code for each in ends(launcher, 4)}
    assert ended == {
        "first/v0/seed-42": ExitCode.RUN_AGAIN,
        "first/v1/seed-42": 2,
        "first/v2/seed-42": ExitCode.OVERDUE,
        "first/v3/seed-42": None,
    }


def test_a_job_that_somebody_deleted_is_lost_and_nothing_else(launch: Launch, api: Any, ends: Ends) -> None:
    launcher = launch()
    launcher.start(task())
    api.run(only(api))
    api.delete(only(api))
    ended = ends(launcher)[0]
    assert (ended.code, ended.reason) == (None, "somebody deleted its Job")


def test_stopping_deletes_the_job_and_waits_for_its_pods(launch: Launch, api: Any, ends: Ends, until: Until) -> None:
    api.keep_deleted = True
    launcher = launch()
    launcher.start(task())
    api.run(only(api))
    launcher.stop(["first/a/seed-42"])
    until(launcher, lambda: "deletionTimestamp" in api.jobs[only(api)]["metadata"])
    assert launcher.poll(0.3) == [], "its pods still save"
    api.delete(only(api))
    assert ends(launcher)[0].code is None


def test_a_job_that_does_not_go_is_not_waited_for_for_ever(
    launch: Launch, api: Any, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "OVERDUE_SECONDS", -9.5)
    api.keep_deleted = True
    launcher = launch()
    launcher.start(task())
    launcher.stop(grace_seconds=1)
    assert ends(launcher)[0].code is None


@pytest.mark.parametrize("fault", ["break_watches", "forget_history"])
def test_what_happened_while_the_watch_was_broken_is_seen(
    launch: Launch, api: Any, ends: Ends, until: Until, fault: str
) -> None:
    launcher = launch()
    for seed in (1, 2, 3):
        launcher.start(task(f"first/a/seed-{seed}"))
    one, two, three = api.jobs
    for name in (one, two, three):
        api.run(name)
    until(launcher, lambda: all(seconds > 0 for seconds in launcher.running().values()))
    with api.lock:
        api.succeed(one)
        api.delete(two)
        getattr(api, fault)()
    ended = {each.task.name: each.code for each in ends(launcher, 2)}
    assert ended == {"first/a/seed-1": 0, "first/a/seed-2": None}
    api.succeed(three)
    assert ends(launcher)[0].code == 0


def test_a_server_that_does_not_answer_is_asked_again_and_named(
    launch: Launch, api: Any, ends: Ends, until: Until
) -> None:
    launcher = launch()
    api.refuse += [("POST jobs", 0, ""), ("POST jobs", 503, "the server is starting"), ("GET pods", 500, "not yet")]
    launcher.start(task())
    assert "can't be reached" in launcher.waiting()["first/a/seed-42"]
    until(launcher, lambda: bool(api.jobs))
    api.fail(only(api))
    assert ends(launcher)[0].code == 1


def test_a_full_quota_is_waited_for_and_said(launch: Launch, api: Any, until: Until) -> None:
    launcher = launch()
    api.refuse.append(("POST jobs", 403, 'jobs.batch "x" is forbidden: exceeded quota: few, used: count/jobs.batch=2'))
    launcher.start(task())
    assert launcher.waiting()["first/a/seed-42"].startswith("the namespace's quota is used up")
    until(launcher, lambda: bool(api.jobs))
    assert "quota" not in launcher.waiting().get("first/a/seed-42", "")


def test_what_the_cluster_refuses_for_good_is_the_users_to_mend(launch: Launch, api: Any) -> None:
    launcher = launch()
    api.refuse.append(("POST jobs", 403, "User x cannot create resource jobs"))
    with pytest.raises(
        UserError, match=r"cannot create resource jobs \(the rights that a conductor needs: .*job_cluster"
    ):
        launcher.start(task())
    api.refuse.append(("POST jobs", 422, "spec.template is invalid"))
    with pytest.raises(UserError, match=r"refuses the Job of first/b/seed-1: spec.template is invalid"):
        launcher.start(task("first/b/seed-1"))


def test_a_queued_job_says_so_and_is_charged_for_no_time(launch: Launch, api: Any, ends: Ends, until: Until) -> None:
    launcher = launch(queue="research")
    launcher.start(task())
    assert api.jobs[only(api)]["spec"]["suspend"] is True
    assert api.jobs[only(api)]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    until(launcher, lambda: launcher.waiting() == {"first/a/seed-42": "queued by Kueue in research"})
    assert launcher.running() == {"first/a/seed-42": 0.0}
    api.change(only(api), suspend=False)
    api.run(only(api))
    until(launcher, lambda: not launcher.waiting() and launcher.running()["first/a/seed-42"] > 0)
    api.change(only(api), suspend=True, ready=0)
    until(launcher, lambda: launcher.waiting() == {"first/a/seed-42": "queued by Kueue in research"})
    api.change(only(api), suspend=False)
    api.run(only(api))
    api.succeed(only(api))
    assert ends(launcher)[0].code == 0


def test_pending_pods_are_explained_by_two_calls_for_all(launch: Launch, api: Any, until: Until, count: Any) -> None:
    launcher = launch()
    for seed in range(30):
        launcher.start(task(f"first/a/seed-{seed}"))
    scheduled = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."}]
    for name in api.jobs:
        api.pod(name, phase="Pending", node=None, conditions=scheduled)
    until(launcher, lambda: len(launcher.waiting()) == 30)
    assert set(launcher.waiting().values()) == {
        "no node can take it, of 1 in the cluster: 1 without enough free cpu (it asks for some)"
    }
    assert count(launcher)["GET pods"] <= 4
    for name in api.jobs:
        api.run(name)
    until(launcher, lambda: not launcher.waiting())


def test_a_pod_that_waiting_does_not_start_ends_its_attempt(launch: Launch, api: Any, ends: Ends) -> None:
    launcher = launch(start_seconds=0.3)
    launcher.start(task())
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    statuses = [{"name": "trial", "image": "no/such:1", "state": {"waiting": waiting}}]
    api.pod(only(api), phase="Pending", containerStatuses=statuses)
    ended = ends(launcher)[0]
    assert ended.code == ExitCode.NOT_STARTED
    assert ended.reason == "the image no/such:1 can't be pulled: Back-off pulling image"
    assert api.jobs == {}


def test_the_machines_of_a_trial_find_each_other_and_no_two_trials_hold_half(
    launch: Launch, api: Any, ends: Ends, until: Until
) -> None:
    launcher = launch(nodes=2, gpus=4)
    launcher.start(task(devices=4))
    launcher.start(task("first/b/seed-42", devices=4))
    name = only(api)
    made = api.jobs[name]
    assert (made["spec"]["completionMode"], made["spec"]["completions"], made["spec"]["parallelism"]) == (
        "Indexed",
        2,
        2,
    )
    service = api.services[name]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    pod = made["spec"]["template"]["spec"]
    assert pod["subdomain"] == name
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert "half of theirs" in launcher.waiting()["first/b/seed-42"]
    assert launcher.poll(0.2) == []
    assert len(api.jobs) == 1
    api.run(name)
    until(launcher, lambda: len(api.jobs) == 2)
    api.change(name, ready=1)
    api.fail(name, 1)
    assert ends(launcher)[0].code == 1


def test_the_rank_that_ended_first_says_why_the_others_did(launch: Launch, api: Any, ends: Ends) -> None:
    launcher = launch(nodes=2)
    launcher.start(task())
    name = only(api)
    for index, code, second in ((0, 1, 9), (1, 137, 5)):
        ended = {"exitCode": code, "finishedAt": f"2026-01-01T00:00:0{second}Z", "startedAt": "2026-01-01T00:00:00Z"}
        api.pod(name, index, phase="Failed", containerStatuses=[{"name": "trial", "state": {"terminated": ended}}])
    api.fail(name, pod=False)
    assert ends(launcher)[0].code == -9


def test_clearing_ends_what_an_earlier_launcher_left(launch: Launch, api: Any) -> None:
    launch().start(task())
    launcher = launch()
    launcher.clear()
    assert api.jobs == {}
    assert launcher.left(task()) is None


def test_closing_ends_what_runs_and_letting_go_does_not(launch: Launch, api: Any) -> None:
    launcher = launch()
    launcher.start(task())
    launcher.detach()
    launcher.close()
    assert len(api.jobs) == 1
    launcher = launch()
    launcher.start(task())
    launcher.close()
    assert api.jobs == {}
