"""Which launcher a name means."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from podium.components.launch.job import JobLauncher
from podium.components.launch.job_cluster import ApiError, Cluster, open_cluster
from podium.components.launch.job_manifest import JobMaker, RunOnCluster, check_jobs
from podium.components.launch.launcher import ATTEMPT_VARIABLE, Launcher, Task, TaskEnd, WaitingNotes
from podium.components.launch.process import open_process_launcher
from podium.components.study.layout import CANCEL, JOBS
from podium.components.study.run import Run
from podium.components.study.schema import Resources
from podium.trainer.builtin.training_path import trainer_digest
from podium.trainer.trial.errors import ExitCode, PodiumError, Problem, UserError
from podium.trainer.trial.lease import TOKEN_VARIABLE
from podium.trainer.trial.storage import Storage, to_json

KINDS = ("process", "job")


def open_launcher(kind: str, run: Run, step: str, resources: Resources, *, parallel: int) -> Launcher:
    """The launcher called `kind` for a step of the run, for at most `parallel` tasks with these resources at once.

    `step` is a stage's name, or that of the step itself. Raises UserError for another launcher, for one that has no
    device to give, and where the run can't be reached from where it starts tasks.
    """
    if kind == "process":
        if resources.nodes > 1:
            words = f"must be 1 with launcher process (launcher job spreads a trial), got {resources.nodes}"
            raise UserError(Problem("resources.nodes", words))
        return open_process_launcher(run.storage, parallel=parallel, devices_per_task=resources.gpus_per_trial)
    if kind == "job":
        # here, since importing the Kubernetes client takes a second and 60 MB

        return open_job_launcher(run, step, resources, parallel=parallel)
    raise UserError(Problem("--launcher", f"must be one of {', '.join(KINDS)}, got {kind!r}"))


# From a run to the launcher of its Jobs: settings, cluster, owner, and what an earlier conductor left.

PATIENCE_SECONDS = 120.0
"""For an API server that does not answer when a step begins: it may be restarting."""


def open_job_launcher(
    run: Run, step: str, resources: Resources, *, parallel: int, cluster: Cluster | None = None
) -> JobLauncher:
    """The launcher of a step's Jobs, at most `parallel` at once, fewer where the site says so.

    Raises UserError for settings, a store or a cluster that can't serve.
    """
    settings = check_jobs(run.study, run.store_uri)
    cluster = cluster or open_cluster(settings.namespace)
    of_run = RunOnCluster(run.store_uri, run.id, run.uri, note_jobs(run.storage, cluster.namespace)["id"], step)
    sources = trainer_digest() if settings.check_sources else None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            maker = JobMaker(of_run, settings, resources, cluster.own_workflow(), sources)
            return JobLauncher(cluster, maker, slots=min(parallel, settings.parallel or parallel))
        except ApiError as error:
            if not error.passes or time.monotonic() > deadline:
                raise UserError(f"launcher job can't use namespace {cluster.namespace}: {error}") from None
            time.sleep(2.0)


def note_jobs(storage: Storage, namespace: str) -> dict[str, Any]:
    """`jobs.json` of a run: an id of its own, made once, and the namespaces in which it has had Jobs."""
    storage.create(JOBS, to_json({"id": uuid.uuid4().hex, "namespaces": [namespace]}))
    noted = read_jobs(storage)
    assert noted is not None
    if namespace not in noted["namespaces"]:
        noted["namespaces"].append(namespace)
        storage.write_json(JOBS, noted)
    return noted


def read_jobs(storage: Storage) -> dict[str, Any] | None:
    """`jobs.json`, or None where the run has never had a Job."""
    noted: dict[str, Any] | None = storage.read_json(JOBS, None)
    return noted


# One task of a step that is no stage, from its start to an end of its own: what shakedown and evaluation run.

POLL_SECONDS = 2.0
DELAY_SECONDS = 5.0
"""Before a task that was interrupted is started again."""
MOST_STARTS = 20


def run_task(run: Run, launcher: Launcher, task: Task) -> list[TaskEnd]:
    """Start the task and wait for its end; again where it was interrupted. Every attempt, the last at the end.

    Raises PodiumError when the run is cancelled.
    """
    notes, ends = WaitingNotes(run.storage), list[TaskEnd]()
    while True:
        env = {ATTEMPT_VARIABLE: str(task.attempt), **task.env, TOKEN_VARIABLE: ""}
        launcher.start(replace(task, env=env))
        while not (ended := launcher.poll(POLL_SECONDS)):
            notes.tell(launcher.waiting())
            if run.storage.exists(CANCEL):
                raise PodiumError(f"run {run.id} was cancelled")
        notes.tell({})
        ends += ended
        if ends[-1].code not in (ExitCode.RUN_AGAIN, None) or len(ends) == MOST_STARTS:
            return ends
        time.sleep(DELAY_SECONDS)
        task = replace(task, attempt=task.attempt + 1)
