"""What a run's trials wait for, in words: printed when it changes, and kept in `waiting.json` for `podium status`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from podium.components.study.layout import WAITING
from podium.trainer.errors import StorageError
from podium.trainer.storage import Storage

SHOWN = 5
"""Trials that are named with each reason."""


class WaitingNotes:
    """Writes down what the trials of a step wait for."""

    def __init__(self, storage: Storage) -> None:
        """`storage` is the run's."""
        self._storage = storage
        self._told: dict[str, str] = {}

    def tell(self, waiting: Mapping[str, str]) -> None:
        """Note who waits for what now. Says nothing where nothing has changed."""
        now = dict(sorted(waiting.items()))
        if now == self._told:
            return
        news: dict[str, list[str]] = {}
        for name, why in now.items():
            if self._told.get(name) != why:
                news.setdefault(why, []).append(name)
        for why, names in news.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            print(f"{', '.join(names[:SHOWN])}{more}: {why}", flush=True)
        self._told = now
        with suppress(StorageError):  # words for a reader are worth no trial
            if now:
                self._storage.write_json(WAITING, now)
            else:
                self._storage.delete(WAITING)
