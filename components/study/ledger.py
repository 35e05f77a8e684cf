"""The ledger: every verdict, kill, gate result and amendment of a run, append-only, one object an entry.

An entry is `ledger/<n>-<id>.json`, created once; `id` is made of its kind and key, so a step that is run again appends
nothing. `time` informs a reader; nothing compares it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

from podium.components.study.fingerprint import canonical_hash
from podium.trainer.trial.storage import Storage, to_json

FOLDER = "ledger"

Kind = Literal[
    "run_started",
    "restart",
    "gate",
    "trial_ended",
    "kill",
    "trial_restarted",
    "broken",
    "more_trials",
    "fallback",
    "verdict",
    "budget",
    "evaluation",
    "registration",
    "report",
    "cancelled",
    "reuse",
    "amendment",
]


@dataclass(frozen=True)
class Entry:
    """One thing that happened. `(kind, key)` is its identity."""

    n: int
    id: str
    kind: str
    key: str
    data: dict[str, Any]
    time: float | None = None
    """Seconds since the epoch by the writer's clock."""


class Ledger:
    """The ledger of one run, over the run's storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, Entry] = {}

    def append(self, kind: Kind, key: str, **data: Any) -> bool:
        """Write an entry unless one with this kind and key exists. True if this call wrote it.

        Of writers that race for one number with different entries each gets its own object; readers order them by
        number, then id. Of writers that race with the same entry one is told True; if they numbered it differently,
        readers see the first only. Raises StorageError.
        """
        assert kind in get_args(Kind), kind
        identity = canonical_hash([kind, key], 12)
        names = self._names()
        if any(_id_of(name) == identity for name in names):
            return False
        number = max((_number_of(name) for name in names), default=0) + 1
        entry = {"kind": kind, "key": key, "time": round(time.time(), 3), "data": data}
        return self._storage.create(f"{FOLDER}/{number:06d}-{identity}.json", to_json(entry))

    def entries(self, kind: Kind | None = None) -> list[Entry]:
        """The entries in order, of one kind or all."""
        found: dict[str, Entry] = {}
        for name in self._names():
            entry = self._known.get(name) or self._read(name)
            found.setdefault(entry.id, entry)
        return [entry for entry in found.values() if kind in (None, entry.kind)]

    def find(self, kind: Kind, key: str) -> Entry | None:
        """The entry of this kind and key, if there is one."""
        return next((entry for entry in self.entries(kind) if entry.key == key), None)

    def _names(self) -> list[str]:
        return sorted(name for name in self._storage.list(FOLDER) if name.endswith(".json"))

    def _read(self, name: str) -> Entry:
        content = self._storage.read_json(name)
        entry = Entry(
            _number_of(name), _id_of(name), content["kind"], content["key"], content["data"], content.get("time")
        )
        self._known[name] = entry
        return entry


def _number_of(name: str) -> int:
    return int(name.removeprefix(f"{FOLDER}/").partition("-")[0])


def _id_of(name: str) -> str:
    return name.rpartition("-")[2].removesuffix(".json")
