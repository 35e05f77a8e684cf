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
from collections.abc import Callable, Iterable

from podium.components.launch.job_cancel import end_jobs
from podium.components.launch.job_cluster import Cluster, Object, open_cluster
from podium.components.launch.job_end import is_over
from podium.components.launch.job_names import APP, RUN_URI
from podium.components.launch.job_settings import read_job_settings
from podium.components.study.layout import LEASE
from podium.trainer.errors import NotFoundError, PodiumError, StorageError
from podium.trainer.lease import PATIENCE_SECONDS
from podium.trainer.storage import open_storage

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
        record = open_storage(run_uri).read_json(LEASE)
    except NotFoundError:
        return ""
    except (StorageError, PodiumError):
        return UNKNOWN
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
