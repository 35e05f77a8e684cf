"""Ending a run's Jobs from outside, when no conductor does it: their trials save, and nothing of them stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from podium.components.launch.job_cluster import Cluster, Object, open_cluster
from podium.components.launch.job_end import is_over
from podium.components.launch.job_names import run_labels
from podium.components.launch.open_job import read_jobs
from podium.components.study.run import Run

POLL_SECONDS = 1.0


def end_jobs(cluster: Cluster, jobs: Sequence[Object]) -> None:
    """Have these Jobs go; their pods get the grace that they were made with. Raises ApiError."""
    for job in jobs:
        cluster.delete_job(job["metadata"]["name"])


def cancel_jobs(
    run: Run, *, wait_seconds: float, open_namespace: Callable[[str], Cluster] = open_cluster
) -> tuple[int, int]:
    """End the Jobs of a run and wait for them; how many there were, and how many still end after the wait.

    Nothing is asked of a cluster where the run never had a Job. Raises UserError where no cluster serves, ApiError.
    """
    noted = read_jobs(run.storage)
    found = left = 0
    deadline = time.monotonic() + wait_seconds
    selector = ",".join(f"{key}={value}" for key, value in run_labels(run.store_uri, run.id).items())
    for namespace in noted["namespaces"] if noted is not None else []:
        cluster = open_namespace(namespace)
        jobs = _going(cluster, selector)
        found += len(jobs)
        end_jobs(cluster, jobs)
        while (going := _going(cluster, selector)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        left += len(going)
        cluster.close()
    return found, left


def _going(cluster: Cluster, selector: str) -> list[Object]:
    return [job for job in cluster.list_jobs(selector)[0] if not is_over(job)]
