"""What in a store no run needs any more, with the reason for each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from podium.components.study import layout

if TYPE_CHECKING:
    from podium.components.study.run import Run
    from podium.trainer.storage import Storage

FULL_CHECKPOINT = re.compile(r"checkpoints/ckpt-step-\d+\.pt(\.json)?$")


@dataclass(frozen=True)
class Garbage:
    """One thing that can go."""

    place: str
    """Its key in the store."""
    why: str
    bytes: int | None
    """None in S3, where asking for each size is a paid request."""
    remove: Callable[[], None]


def find_garbage(store: str) -> list[Garbage]:
    """Everything of a store that can go. A run that is going on keeps all it has.

    Raises UserError where the store has no run: then it may be no store at all.
    """
    from podium.pipelines.cli.find import all_runs

    runs = all_runs(store)
    live = {run.id for run in runs if run.state() == "running"}
    root = runs[0].store
    found = [item for run in runs if run.id not in live for item in _checkpoints(run)]
    found += _unused_data(root, {fingerprint for run in runs for fingerprint in run.registered.datasets.values()})
    if not live:
        found += _scratch(root)
    return found


def _checkpoints(run: Run) -> Iterator[Garbage]:
    """Full checkpoints of ended trials, once the stage has its verdict; what was promoted may be continued."""
    prefix = layout.run_key(run.id)
    for stage in run.stages:
        verdict = run.verdict(stage)
        if verdict is None or verdict.decision == "await":
            continue
        promoted = {ref.name for ref in verdict.promoted}
        for trial in run.trials(stage):
            if trial.variant.name in promoted or run.result(trial.key) is None:
                continue
            for key in run.storage.list(f"{trial.key.folder}/checkpoints"):
                if FULL_CHECKPOINT.search(key):
                    yield _object(run.store, f"{prefix}/{key}", "checkpoint to resume from")


def _unused_data(store: Storage, used: set[str]) -> Iterator[Garbage]:
    keys = store.list(layout.DATA)
    for fingerprint in sorted({key.split("/")[1] for key in keys if key.count("/") > 1} - used):
        folder = layout.data_key(fingerprint)
        sizes = [_size(store, key) for key in keys if key.startswith(f"{folder}/")]
        known = [size for size in sizes if size is not None]
        yield Garbage(
            folder,
            "data of no run",
            sum(known) if len(known) == len(sizes) else None,
            lambda folder=folder: store.delete_folder(folder),  # type: ignore[misc]
        )


def _scratch(store: Storage) -> Iterator[Garbage]:
    """What killed writers left; only a file system has it."""
    from podium.trainer.storage import SCRATCH

    # a path is all that is needed here: the key itself need not be there
    place = store.local_path(layout.RUNS)
    if place is None:
        return
    for folder, _, names in os.walk(place.parent):
        for name in names:
            if name.startswith(SCRATCH):
                path = Path(folder) / name
                key = str(path.relative_to(place.parent))
                yield Garbage(key, "scratch of a killed writer", path.stat().st_size, path.unlink)


def _object(store: Storage, key: str, why: str) -> Garbage:
    return Garbage(key, why, _size(store, key), lambda: store.delete(key))


def _size(store: Storage, key: str) -> int | None:
    path = store.local_path(key)
    return None if path is None else path.stat().st_size
