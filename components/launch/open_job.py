"""From a run to the launcher of its Jobs: settings, cluster, owner, and what an earlier conductor left."""

from __future__ import annotations

import time
import uuid
from typing import Any

from podium.components.launch.job import JobLauncher
from podium.components.launch.job_cluster import ApiError, Cluster, open_cluster
from podium.components.launch.job_manifest import JobMaker
from podium.components.launch.job_names import RunOnCluster
from podium.components.launch.job_settings import check_jobs
from podium.components.study.layout import JOBS
from podium.components.study.run import Run
from podium.components.study.schema import Resources
from podium.components.study.sources import trainer_digest
from podium.trainer.errors import NotFoundError, UserError
from podium.trainer.storage import Storage, to_json

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
    try:
        noted: dict[str, Any] = storage.read_json(JOBS)
    except NotFoundError:
        return None
    return noted
