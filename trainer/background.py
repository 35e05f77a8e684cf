"""Writing beside training: jobs in the order given, on one thread, whose failure reaches the training thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from podium.trainer.errors import NotFoundError, StorageError

Job = Callable[[], None]

_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0, 60.0)
"""A store that is away for some minutes costs no trial."""


class BackgroundWriter:
    """Runs jobs one after the other. Jobs that the store refuses for the moment are tried again.

    After a job has failed for good none is run any more, and the next call raises what it raised.
    """

    def __init__(self, retry_seconds: tuple[float, ...] = _RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._jobs: queue.Queue[tuple[Job, Future[None]] | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._giving_up = threading.Event()
        self._last: Future[None] | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future[None]:
        """Run the job after those before it."""
        if self._failure is not None:
            raise self._failure
        self._last = Future()
        self._jobs.put((job, self._last))
        return self._last

    def drain(self) -> None:
        """Wait until every job is done."""
        if self._last is not None:
            self._last.result()

    def close(self, *, give_up: bool = False) -> None:
        """End the thread after the jobs at hand; `give_up`: none of them is tried a second time."""
        if give_up:
            self._giving_up.set()
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                if self._failure is not None:
                    raise self._failure
                self._try(job)
                done.set_result(None)
            except BaseException as error:  # noqa: BLE001  handed to the training thread
                self._failure = error
                done.set_exception(error)

    def _try(self, job: Job) -> None:
        for seconds in self._retry_seconds:
            try:
                return job()
            except NotFoundError:
                raise
            except StorageError as error:
                print(f"writing failed, again in {seconds:g} s: {error}", flush=True)
                if self._giving_up.wait(seconds):
                    raise
        return job()
