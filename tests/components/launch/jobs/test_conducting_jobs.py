"""A stage conducted over Jobs: a stand-in kubelet runs each pod's command as a process on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podium.components.launch import conductor, job
from podium.components.launch.conductor import StageOutcome, conduct
from podium.components.launch.job import JobLauncher
from podium.components.launch.job_cluster import Cluster
from podium.components.launch.job_manifest import FOLDER, JobMaker, JobSettings, RunOnCluster
from podium.components.launch.launcher import Attempt, Attempts, read_attempts, write_attempts
from podium.components.launch.open import note_jobs
from podium.components.launch.reap import cancel_jobs
from podium.components.study.layout import TrialKey
from podium.components.study.run import Run
from podium.trainer.trial.errors import InUseError, UserError
from podium.trainer.trial.result import Status

MakeRun = Callable[..., Run]
Starts = Callable[[Run], dict[str, int]]


class Kubelet:
    """Runs what a Job's pod would run, without the entry before it."""

    def __init__(self, api: Any) -> None:
        self.api, self.processes = api, dict[str, subprocess.Popen[bytes]]()
        self.threads: list[threading.Thread] = []
        self.never: set[str] = set()
        """Variants whose Jobs are complete at once, without anything having run."""
        self.lock = threading.Lock()

    def begin(self, job: dict[str, Any]) -> None:
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        if labels["podium.dev/variant"] in self.never:
            self.api.succeed(name)
            return
        container = job["spec"]["template"]["spec"]["containers"][0]
        argv = container["command"][container["command"].index("--") + 1 :]
        env = {**os.environ, **{each["name"]: each["value"] for each in container["env"]}}
        with self.lock:
            self.processes[name] = subprocess.Popen([sys.executable, *argv[1:]], env=env)
        thread = threading.Thread(target=self._wait, args=(name,))
        thread.start()
        self.threads.append(thread)

    def _wait(self, name: str) -> None:
        self.api.run(name)
        code = self.processes[name].wait()
        if name in self.api.jobs:
            self.api.succeed(name) if code == 0 else self.api.fail(name, code if code >= 0 else 128 - code)

    def delete(self, name: str) -> None:
        """What the deletion of a Job does to its pod."""
        with self.lock:
            process = self.processes.get(name)
        if process is not None:
            process.send_signal(signal.SIGTERM)


@pytest.fixture
def kubelet(api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubelet]:
    monkeypatch.setattr(job, "FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(conductor, "FIRST_DELAY_SECONDS", 0.05)
    made = Kubelet(api)
    api.on_create = made.begin
    delete = api.delete_job

    def delete_job(name: str) -> Any:
        made.delete(name)
        return delete(name)

    api.delete_job = delete_job
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()
    for thread in made.threads:
        thread.join()


@pytest.fixture
def open_jobs(open_cluster: Callable[[], Cluster]) -> Callable[..., JobLauncher]:
    def open_launcher(run: Run, slots: int = 4) -> JobLauncher:
        incarnation = note_jobs(run.storage, "somewhere")["id"]
        of_run = RunOnCluster(run.store_uri, run.id, run.uri, incarnation, "first")
        maker = JobMaker(of_run, JobSettings(grace_seconds=10), run.study.stages["first"].resources)
        return JobLauncher(open_cluster(), maker, slots=slots)

    return open_launcher


@pytest.fixture
def conducted_on_jobs(
    open_jobs: Callable[..., JobLauncher], stand_in: Callable[[str], list[str]], kubelet: Kubelet
) -> Callable[..., StageOutcome]:
    def go(run: Run, slots: int = 4, **options: Any) -> StageOutcome:
        return conduct(run, "first", open_jobs(run, slots), command=stand_in, beat_seconds=0.1, **options)

    return go


Conduct = Callable[..., StageOutcome]


def test_a_stage_is_conducted_over_jobs_and_a_second_conductor_changes_nothing(
    make_run: MakeRun, conducted_on_jobs: Conduct, starts: Starts, api: Any
) -> None:
    run = make_run(seeds=2)
    assert conducted_on_jobs(run) == StageOutcome(trials=8, finished=8)
    assert set(starts(run).values()) == {1}
    assert len(api.jobs) == 8
    folders = {job["metadata"]["annotations"][FOLDER] for job in api.jobs.values()}
    assert f"{run.uri}/trials/first/a/seed-43" in folders
    assert conducted_on_jobs(run) == StageOutcome(trials=8, finished=8)
    assert len(api.jobs) == 8


def test_crashes_are_tried_again_and_counted_and_interruptions_are_not(
    make_run: MakeRun, conducted_on_jobs: Conduct, starts: Starts, api: Any
) -> None:
    run = make_run({"a": {"exits": [75, 1, -9]}, "b": {"exits": [2]}, "c": {"exits": [1, 1, 1, 1]}}, retries=2)
    conducted_on_jobs(run)
    started = {"base": 1, "a": 4, "b": 1, "c": 3}
    assert starts(run) == {f"first/{name}/seed-42": number for name, number in started.items()}
    attempts = read_attempts(run.storage, "trials/first/a/seed-42").attempts
    assert [(each.code, each.crashed) for each in attempts] == [(75, False), (1, True), (-9, True), (0, False)]
    results = {name: run.result(TrialKey("first", name, 42)) for name in ("a", "b", "c")}
    assert {name: result.status for name, result in results.items() if result} == {
        "a": Status.COMPLETED,
        "b": Status.BROKEN,
        "c": Status.BROKEN,
    }
    assert {name.rpartition("-")[2] for name in api.jobs if "-first-a-" in name} == {"1", "2", "3", "4"}


def test_a_job_that_completes_without_a_result_is_broken_and_never_a_success(
    make_run: MakeRun, conducted_on_jobs: Conduct, kubelet: Kubelet
) -> None:
    kubelet.never = {"a"}
    run = make_run(retries=1, names=["a"])
    conducted_on_jobs(run)
    result = run.result(TrialKey("first", "a", 42))
    assert result is not None
    assert result.status is Status.BROKEN
    assert result.reason == "crashed 2 times; the last attempt ended with exit code 0, but no result"


@pytest.mark.parametrize("written_down", [False, True])
def test_a_conductor_that_is_started_again_goes_on_with_the_jobs_of_the_former(
    make_run: MakeRun,
    open_jobs: Callable[..., JobLauncher],
    conducted_on_jobs: Conduct,
    stand_in: Callable[[str], list[str]],
    starts: Starts,
    api: Any,
    written_down: bool,
) -> None:
    from podium.components.launch.foreign_trials import trial_task
    from podium.components.launch.records import Records

    run = make_run({"*": {"seconds": 1.0}}, price="{usd_per_gpu_hour: 3600}", names=["a"])
    former = open_jobs(run)
    for trial in run.trials("first"):
        Records(run, "first").spec(trial)
        former.start(trial_task(run, trial, former, stand_in)[0])
        if written_down:
            begun = Attempts(attempts=[Attempt(seconds=100.0)])
            write_attempts(run.storage, trial.key.folder, begun)
    former.detach()  # as if killed
    former.close()
    assert conducted_on_jobs(run) == StageOutcome(trials=2, finished=2)
    assert set(starts(run).values()) == {1}
    assert len(api.jobs) == 2
    result = run.result(TrialKey("first", "a", 42))
    assert result is not None
    assert result.attempts == 1
    assert result.cost_usd is not None
    assert (result.cost_usd >= 100) == written_down


def test_a_cancelled_run_ends_its_jobs(make_run: MakeRun, conducted_on_jobs: Conduct, api: Any) -> None:
    run = make_run({"*": {"seconds": 60}})
    timer = threading.Timer(1.0, lambda: run.storage.write_json("cancel.json", {"cancelled": True}))
    timer.start()
    assert conducted_on_jobs(run).cancelled
    timer.join()
    assert api.jobs == {}


def test_jobs_whose_conductor_is_gone_are_ended_from_outside(
    make_run: MakeRun, launch: Any, open_cluster: Any, api: Any
) -> None:
    run = make_run()
    assert cancel_jobs(run, wait_seconds=5, open_namespace=open_cluster) == (0, 0), "it never had a Job"
    noted = note_jobs(run.storage, "somewhere")
    of_run = RunOnCluster(run.store_uri, run.id, run.uri, noted["id"], "first")
    from podium.components.launch.launcher import Task

    others = launch()
    others.start(Task("first/a/seed-42", ["python"], "log"))
    orphaned = launch(run=of_run)
    for seed in (1, 2):
        orphaned.start(Task(f"first/a/seed-{seed}", ["python"], "log"))
    api.succeed(list(api.jobs)[1])
    assert cancel_jobs(run, wait_seconds=5, open_namespace=open_cluster) == (1, 0)
    assert len(api.jobs) == 2, "another run's Job and one that is over"


def test_who_lost_the_run_leaves_its_jobs_to_who_took_it(
    make_run: MakeRun, conducted_on_jobs: Conduct, api: Any
) -> None:
    run = make_run({"*": {"seconds": 60}})

    def take_over() -> None:
        lease = run.storage.read_json("lease.json")
        run.storage.write_json("lease.json", {**lease, "holder": "another"})

    timer = threading.Timer(1.0, take_over)
    timer.start()
    with pytest.raises(InUseError, match="taken over"):
        conducted_on_jobs(run)
    timer.join()
    assert len(api.jobs) == 4


def test_a_run_that_is_conducted_already_is_refused_and_its_jobs_stay(
    make_run: MakeRun, conducted_on_jobs: Conduct, api: Any
) -> None:
    from podium.trainer.trial.lease import Lease

    run = make_run()
    with Lease(run.storage, "lease.json", what="run"), pytest.raises(InUseError, match="in use"):
        conducted_on_jobs(run)
    assert api.jobs == {}


def test_what_trials_wait_for_is_written_down_and_taken_back(
    make_run: MakeRun, conducted_on_jobs: Conduct, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(names=["a"])
    words = "exceeded quota: few, requested: count/jobs.batch=1, used: count/jobs.batch=2, limited: count/jobs.batch=2"
    api.refuse += [("POST jobs", 403, words)]
    seen: list[Any] = []
    write = run.storage.write_json

    def watch_writes(key: str, value: Any) -> None:
        seen.extend([value] if key == "waiting.json" else [])
        write(key, value)

    run.storage.write_json = watch_writes  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "QUOTA_SECONDS", 1.0)
        assert conducted_on_jobs(run).finished == 2
    assert seen[0] == {"first/base/seed-42": f"the namespace's quota is used up: {words}"}
    assert "first/base/seed-42: the namespace's quota is used up" in capsys.readouterr().out
    assert not run.storage.exists("waiting.json")


def test_a_job_of_a_removed_run_is_not_taken_for_that_of_its_successor(
    make_run: MakeRun, conducted_on_jobs: Conduct, starts: Starts, api: Any
) -> None:
    run = make_run(names=["a"])
    conducted_on_jobs(run)
    script = run.storage.read_json("script.json")
    run.store.delete_folder(f"runs/{run.id}")
    again = make_run(script, names=["a"])
    assert again.id == run.id
    conducted_on_jobs(again)
    assert starts(again) == {"first/base/seed-42": 1, "first/a/seed-42": 1}
    assert len(api.jobs) == 4


def test_a_folder_is_no_store_for_jobs(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from podium.components.launch.open import open_launcher

    monkeypatch.delenv("PODIUM_JOBS", raising=False)
    run = make_run()
    with pytest.raises(
        UserError, match="must be s3://bucket/prefix with launcher job, since pods can't reach a folder"
    ):
        open_launcher("job", run, "first", run.study.stages["first"].resources, parallel=1)
