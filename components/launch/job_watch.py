"""One watch on all Jobs of a step, in a thread, taken up again whatever ends it.

What it saw goes into a queue. Where the server no longer knows the version from which to go on (410), or after a
break of unknown length, the Jobs are listed again, and who reads the queue compares.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from podium.components.launch.job_cluster import ApiError, Cluster, Object

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.2, 15.0
"""Back-off while the server does not answer."""
GONE = 410

_log = logging.getLogger("podium.jobs")


@dataclass(frozen=True)
class Seen:
    """A Job as the server last told of it."""

    job: Object
    deleted: bool = False


@dataclass(frozen=True)
class Listed:
    """All Jobs that there are; one that is not among them is gone."""

    jobs: list[Object]


def slim(job: Object) -> Object:
    """What a launcher needs of a Job: a tenth of it, without its template and who changed which field."""
    metadata, spec = job["metadata"], job["spec"]
    return {
        "metadata": {key: metadata[key] for key in ("name", "uid", "labels", "deletionTimestamp") if key in metadata},
        "spec": {key: spec[key] for key in ("suspend", "parallelism", "activeDeadlineSeconds") if key in spec},
        "status": job.get("status") or {},
    }


class JobWatch:
    """Follows the Jobs with these labels from a list's version on."""

    def __init__(self, cluster: Cluster, selector: str, version: str) -> None:
        self.events: queue.SimpleQueue[Seen | Listed] = queue.SimpleQueue()
        self._cluster, self._selector, self._version = cluster, selector, version
        self._end = threading.Event()
        self._response: Any = None
        self._thread = threading.Thread(target=self._follow, name="job watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        response = self._response
        if response is not None:
            with suppress(Exception):  # it may have been closed at this moment
                response.shutdown()
        self._thread.join(5.0)

    def _follow(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self._end.is_set():
            try:
                self._watch()
                delay = FIRST_DELAY_SECONDS
                # a server that ends each watch at once must not be asked in a tight loop
                self._end.wait(FIRST_DELAY_SECONDS)
                continue
            except ApiError as error:
                if self._end.is_set():
                    return
                if error.status == GONE:
                    self._version = ""
                else:
                    _log.info("watching Jobs: %s; again in %.1f s", error, delay)
            self._end.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _watch(self) -> None:
        if not self._version:
            jobs, self._version = self._cluster.list_jobs(self._selector)
            self.events.put(Listed([slim(job) for job in jobs]))
        for event in self._cluster.watch_jobs(self._selector, self._version, self._opened):
            kind, what = event["type"], event["object"]
            if kind == "ERROR":
                raise ApiError(int(what.get("code") or 0), str(what.get("message")), str(what.get("reason")))
            self._version = what["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                self.events.put(Seen(slim(what), deleted=kind == "DELETED"))

    def _opened(self, response: Any) -> None:
        self._response = response
        if self._end.is_set():
            response.shutdown()
