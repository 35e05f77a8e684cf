"""A run that is used alone sends its own metrics to MLflow: from a thread while it trains, and once at its end."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from podium.trainer.storage import Storage
from podium.trainer.sync import sync_run

INTERVAL_SECONDS = 30.0


class SyncThread:
    """Calls `sync_run` every half minute, and a last time when the context ends, however it ends."""

    def __init__(self, folder: Storage, tracking_uri: str, experiment: str, run_name: str) -> None:
        self._folder = folder
        self._uri, self._experiment, self._run_name = tracking_uri, experiment, run_name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sync", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        over = False
        while not over:
            over = self._end.wait(INTERVAL_SECONDS)
            sync_run(self._folder, self._uri, self._experiment, run_name=self._run_name)
