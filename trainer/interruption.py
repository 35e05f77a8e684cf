"""Requests to save and end: a signal, a conductor that is gone, a lease that somebody else took."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from podium.trainer.errors import PodiumError
from podium.trainer.lease import Lease, Watch

EX_TEMPFAIL = 75
"""Exit code of a run that saved and can go on when started again (sysexits.h)."""


class Interrupted(PodiumError):  # noqa: N818  a request, not an error
    """The run ended on request at a step boundary. Started again it goes on."""


class StopRequests:
    """What asks a run to end before it is done; looked at once a step. A context, since it holds signal handlers."""

    def __init__(self, lease: Lease | None = None, watch_uri: str | None = None) -> None:
        self._lease = lease
        self._watch = Watch(watch_uri) if watch_uri else None
        self._signal: int | None = None
        self._former: dict[int, Any] = {}

    @property
    def lease_lost(self) -> bool:
        """Whether another process may be writing this run: nothing must be saved any more."""
        return self._lease is not None and self._lease.lost

    @property
    def reason(self) -> str | None:
        """Why the run should end now; None where it should not."""
        if self.lease_lost:
            return "another process took this run's lease"
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._watch is not None and self._watch.stale:
            return "the conductor's counter stands still"
        return None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._watch is not None:
            self._watch.stop()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:  # whoever presses Ctrl-C twice does not want to wait for the save
            signal.signal(signal.SIGINT, signal.default_int_handler)
