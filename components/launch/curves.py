"""The curves of a stage's trials as last read: running arms are looked at every few seconds."""

from __future__ import annotations

from podium.components.launch.judge import METRICS, read_curve
from podium.components.study.layout import TrialKey
from podium.trainer.curve import Point
from podium.trainer.errors import NotFoundError
from podium.trainer.storage import Storage


class Curves:
    """Reads a trial's curve again only where its metrics have changed."""

    def __init__(self, storage: Storage) -> None:
        """`storage` is the run's."""
        self._storage = storage
        self._known: dict[TrialKey, tuple[str, list[Point]]] = {}

    def read(self, key: TrialKey) -> list[Point]:
        """The evaluations of a trial so far; none where it has not measured anything yet."""
        try:
            stamp = self._storage.stamp(f"{key.folder}/{METRICS}")
        except NotFoundError:
            return []
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            known = self._known[key] = (stamp, read_curve(self._storage, key.folder))
        return known[1]

    def forget(self, key: TrialKey) -> None:
        """Keep nothing of a trial that is judged."""
        self._known.pop(key, None)
