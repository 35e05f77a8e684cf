"""A lease keeps a second writer off a run or a trial. A holder shows life by a counter; clocks are never compared.

A holder on this host whose process is gone is dead at once. Any other holder is dead when its counter stands still for
`patience` of its own intervals, measured by the watcher's monotonic clock.

Taking over a dead holder's lease is decided by create-once, the one promise that file systems and S3 both give: the
claim `<key>.claim-<dead holder>-<counter>-<n>` is created by one taker only. The winner reads the lease again and
writes only if the dead record still stands, so a taker that comes late can't overwrite a new holder. A claim whose
taker died before it wrote is followed by claim n + 1. What is left is a taker that is suspended between its last check
and its write for as long as the patience; the holder then sees another's record at its next beat and `lost` says so.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from podium.trainer.trial.errors import InUseError, NotFoundError, PodiumError, StorageError
from podium.trainer.trial.process import is_alive, own_identity
from podium.trainer.trial.result import LEASE
from podium.trainer.trial.storage import Storage, open_storage, split_uri, to_json

TOKEN_VARIABLE = "PODIUM_LEASE_TOKEN"  # noqa: S105  a name, not a secret
"""Where a holder leaves its token for the processes it starts. Not read here: only who means to share passes it on."""
FILE_INTERVAL, S3_INTERVAL = 2.0, 10.0
"""Seconds between two beats: on S3 every beat is two paid requests."""

PATIENCE_VARIABLE, PATIENCE_SECONDS = "PODIUM_PATIENCE_SECONDS", 600.0
"""How long a run goes on while its conductor's counter stands still, and where an environment says otherwise."""

Record = dict[str, Any]


class Lease:
    """The right to write below a root, held while the context lasts. A daemon thread raises the counter."""

    def __init__(
        self,
        storage: Storage,
        key: str = LEASE,
        *,
        what: str = "run",
        interval: float | None = None,
        patience: int = 5,
        token: str | None = None,
    ) -> None:
        """`what` is named in errors; `interval` in seconds; `patience` in intervals without a change.

        A process given the holder's `token` shares the lease instead of taking it: a step that the holder started.
        """
        self._storage = storage
        self._key = key
        self._what = what
        self._interval = interval or (FILE_INTERVAL if storage.local_path(key) else S3_INTERVAL)
        self._patience = patience
        self.token = token or uuid.uuid4().hex
        self._counter = 0
        self._held = False
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease. Raises InUseError where its holder lives, which on another host takes a beat to see."""
        while not self._storage.create(self._key, self._record()):
            found = _read(self._storage, self._key)
            if found is None:
                continue
            if found["holder"] == self.token and is_alive(found["host"], found["pid"], found["started"]) is not False:
                return
            if _lives(self._storage, self._key, found):
                raise InUseError(f"{self._what} is in use by process {found['pid']} on {_host(found)}")
            if self._take_over(found):
                break
        self._held = True
        self._thread = threading.Thread(target=self._beat, name=f"lease {self._what}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self._held and not self.lost and self._is_ours():
            self._storage.delete(self._key)
        self._held = False

    @property
    def lost(self) -> bool:
        """Whether somebody else took it, or removed it: what is written from now on may clash."""
        return self._lost.is_set()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(StorageError):  # a lease that can't be removed now is dead by itself soon
            self.release()

    def _record(self) -> bytes:
        return to_json(
            {
                "holder": self.token,
                "counter": self._counter,
                **own_identity(),
                "interval": self._interval,
                "patience": self._patience,
            }
        )

    def _is_ours(self) -> bool:
        found = _read(self._storage, self._key)
        return found is not None and found["holder"] == self.token and found["pid"] == os.getpid()

    def _beat(self) -> None:
        while not self._stop.wait(self._interval):
            # A store that is away for a while does not end the lease: nobody else can take it meanwhile either.
            with suppress(StorageError):
                if not self._is_ours():
                    self._lost.set()
                    return
                self._counter += 1
                self._storage.write_bytes(self._key, self._record())

    def _take_over(self, dead: Record) -> bool:
        """Race the other takers for a dead holder's lease. False: look at the lease again."""
        stem = f"{self._key}.claim-{dead['holder']}-{dead['counter']}-"
        number = 0
        since = time.monotonic()
        while not self._storage.create(f"{stem}{number}", self._record()):
            claim = _read(self._storage, f"{stem}{number}")
            if claim is None:
                return False
            if _claim_lives(self._storage, self._key, dead, claim):
                return False
            number += 1
            since = time.monotonic()
        current = _read(self._storage, self._key)
        ours = current == dead and time.monotonic() - since < self._interval * self._patience / 2
        if ours:
            self._storage.write_bytes(self._key, self._record())
        for index in range(number + 1):
            self._storage.delete(f"{stem}{index}")
        return ours


class Watch:
    """The dead man's side: tells when another's counter has stood still, or could not be read, for too long."""

    def __init__(self, uri_of_lease: str, *, patience_seconds: float | None = None, interval: float = 10.0) -> None:
        """`patience_seconds` is by default PODIUM_PATIENCE_SECONDS of the environment, or 10 minutes."""
        folder, self._key = split_uri(uri_of_lease)
        self._storage = open_storage(folder)
        self._patience = patience_seconds or float(os.environ.get(PATIENCE_VARIABLE) or PATIENCE_SECONDS)
        self._interval = min(interval, self._patience / 4)
        self._seen: tuple[Any, Any] | None = None
        self._changed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)
        self._thread.start()

    @property
    def stale(self) -> bool:
        """Whether nothing has changed for `patience_seconds`. True again becomes False when a new holder beats."""
        return time.monotonic() - self._changed > self._patience

    def stop(self) -> None:
        """End the polling."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _poll(self) -> None:
        while True:
            with suppress(StorageError):
                found = _read(self._storage, self._key)
                seen = (found["holder"], found["counter"]) if found else None
                if seen is not None and seen != self._seen:
                    self._seen = seen
                    self._changed = time.monotonic()
            if self._stop.wait(self._interval):
                return


def is_live(storage: Storage, key: str = LEASE) -> bool:
    """Whether a living process holds the lease. On another host this may watch for `patience` of its intervals."""
    found = _read(storage, key)
    return found is not None and _lives(storage, key, found)


def _read(storage: Storage, key: str) -> Record | None:
    try:
        record = json.loads(storage.read_bytes(key))
    except NotFoundError:
        return None
    assert isinstance(record, dict)
    return record


def _lives(storage: Storage, key: str, found: Record) -> bool:
    known = is_alive(found["host"], found["pid"], found["started"])
    if known is not None:
        return known
    deadline = time.monotonic() + found["interval"] * found["patience"]
    while time.monotonic() < deadline:
        time.sleep(found["interval"] / 4)
        now = _read(storage, key)
        if now is None:
            return False
        if (now["holder"], now["counter"]) != (found["holder"], found["counter"]):
            return True
    return False


def _claim_lives(storage: Storage, key: str, dead: Record, claim: Record) -> bool:
    """Whether a taker that claimed first will still write: it has as long as a beat would be given."""
    known = is_alive(claim["host"], claim["pid"], claim["started"])
    if known is False:
        return False
    deadline = time.monotonic() + claim["interval"] * claim["patience"]
    while time.monotonic() < deadline:
        if _read(storage, key) != dead:
            return True
        time.sleep(claim["interval"] / 20)
    return bool(known)


def _host(found: Record) -> str:
    return str(found["host"]).partition("/")[0]


# Requests to save and end: a signal, a conductor that is gone, a lease that somebody else took.


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
