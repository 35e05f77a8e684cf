"""`python -m podium.components.launch.reap`: end the Jobs of runs that nobody conducts any more.

A trial that runs saves and ends by itself when its conductor's counter stands still. One that is queued, pending or
hung can't, and would take its GPUs whenever they come free. So, now and then: list the namespace's Jobs, watch the
lease of each run that has some, and delete the Jobs of a run whose lease stood still, or was not there, all the while.
A trial that is started again goes on from its checkpoint, so ending one too many costs little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from podium.components.launch.job_cluster import Cluster, Object, open_cluster
from podium.components.launch.job_manifest import APP, RUN_URI, read_job_settings, run_labels
from podium.components.launch.job_state import is_over
from podium.components.launch.open import read_jobs
from podium.components.study.layout import LEASE
from podium.components.study.run import Run
from podium.trainer.trial.errors import PodiumError
from podium.trainer.trial.lease import PATIENCE_SECONDS
from podium.trainer.trial.storage import open_storage

# Ending a run's Jobs from outside, when no conductor does it: their trials save, and nothing of them stays.

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
        jobs = _running_jobs(cluster, selector)
        found += len(jobs)
        end_jobs(cluster, jobs)
        while (going := _running_jobs(cluster, selector)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        left += len(going)
        cluster.close()
    return found, left


def _running_jobs(cluster: Cluster, selector: str) -> list[Object]:
    return [job for job in cluster.list_jobs(selector)[0] if not is_over(job)]


LOOK_SECONDS = 10.0
UNKNOWN = "unknown"


def main(arguments: list[str] | None = None) -> int:
    """Watch, then end what is to end. Returns the exit code: 0 also where there was nothing to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", help="default: that of PODIUM_JOBS, or this pod's own")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_SECONDS, help="seconds to watch a lease; default 600"
    )
    given = parser.parse_args(arguments)
    try:
        cluster = open_cluster(given.namespace or read_job_settings().namespace)
        ended = reap(cluster, patience_seconds=given.patience)
        cluster.close()
    except PodiumError as error:
        print(f"reap: {error}", file=sys.stderr)
        return 1
    print(f"reap: ended {len(ended)} Jobs of runs that nobody conducts" + "".join(f"\n  {name}" for name in ended))
    return 0


def reap(
    cluster: Cluster,
    *,
    patience_seconds: float,
    look_seconds: float = LOOK_SECONDS,
    beat: Callable[[str], str] | None = None,
) -> list[str]:
    """End the Jobs of runs without a conductor; their names. `beat` reads a run's counter, by its URI. Raises ApiError.

    Where a lease can't be read nothing is known, and nothing is ended.
    """
    beat = beat or read_beat
    selector = ",".join(f"{key}={value}" for key, value in APP.items())
    still = {run: beat(run) for run in _runs(_going(cluster, selector))}
    deadline = time.monotonic() + patience_seconds
    while still and time.monotonic() < deadline:
        time.sleep(min(look_seconds, patience_seconds))
        still = {run: seen for run, seen in still.items() if seen != UNKNOWN and beat(run) == seen}
    # those that there are now: a conductor that came meanwhile has moved its counter, and its run is not `still`
    gone = [job for job in _going(cluster, selector) if _run_of(job) in still]
    end_jobs(cluster, gone)
    return [job["metadata"]["name"] for job in gone]


def read_beat(run_uri: str) -> str:
    """What a run's lease says now, holder and counter; empty without one, `unknown` where the store does not answer."""
    try:
        record = open_storage(run_uri).read_json(LEASE, None)
    except PodiumError:
        return UNKNOWN
    if record is None:
        return ""
    return f"{record['holder']}-{record['counter']}"


def _going(cluster: Cluster, selector: str) -> list[Object]:
    jobs = cluster.list_jobs(selector)[0]
    return [job for job in jobs if not is_over(job) and "deletionTimestamp" not in job["metadata"]]


def _runs(jobs: Iterable[Object]) -> list[str]:
    return sorted({run for job in jobs if (run := _run_of(job))})


def _run_of(job: Object) -> str:
    return str((job["metadata"].get("annotations") or {}).get(RUN_URI, ""))


if __name__ == "__main__":
    sys.exit(main())
