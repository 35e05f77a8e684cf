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

FULL = re.compile(r"/ckpt-step-\d+\.pt$")
BETWEEN = re.compile(r"/model-step-\d+\.(safetensors|json)$")
"""Models at steps between; `best-model` and `final-model` are files of their own."""


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
    """Checkpoints of the gate once it has passed, and of ended trials once the stage has its verdict.

    Best and final models stay, and the full checkpoints of what was promoted, which may be continued.
    """
    gate = run.read_json(layout.SHAKEDOWN)
    if gate is not None and gate.get("passed"):
        for key in run.storage.list("shakedown"):
            if "/checkpoints/" in key:
                yield _object(run, key, "checkpoint of the gate")
    for stage in run.stages:
        verdict = run.verdict(stage)
        if verdict is None or verdict.decision == "await":
            continue
        promoted = {ref.name for ref in verdict.promoted}
        for trial in run.trials(stage):
            if run.result(trial.key) is None:
                continue
            for key in run.storage.list(f"{trial.key.folder}/checkpoints"):
                if FULL.search(key) and trial.variant.name not in promoted:
                    yield _object(run, key, "checkpoint to resume from")
                elif BETWEEN.search(key):
                    yield _object(run, key, "model at a step between")


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


def _object(run: Run, key: str, why: str) -> Garbage:
    return Garbage(f"{layout.run_key(run.id)}/{key}", why, _size(run.storage, key), lambda: run.storage.delete(key))


def _size(store: Storage, key: str) -> int | None:
    path = store.local_path(key)
    return None if path is None else path.stat().st_size
