"""Where a run starts from: the newest whole checkpoint of its own, one that was named, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.trainer.checkpoint import (
    BEST,
    DamagedCheckpoint,
    check_fits,
    check_is_full,
    differences,
    full_name,
    read_full,
    step_of,
)
from podium.trainer.config import RunSpec, TrainConfig
from podium.trainer.errors import CheckpointError, ConfigError, NotFoundError, Problem
from podium.trainer.state import RunState, best_point
from podium.trainer.storage import Storage, open_storage, split_uri

AUTO = "auto"

_MAY_CHANGE = (
    "max_steps",
    "max_tokens",
    "evaluation.",
    "checkpoint.",
    "stop.",
    "runtime.",
    "preset",
    "batch.micro_batch",
    "batch.fit_memory",
)
"""What may differ when a run goes on in its folder: how long it is, how it is watched and where it computes."""


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from."""

    state: dict[str, Any]
    name: str
    own: bool
    """Whether it is this run's own, so that its folder's files up to that step are this run's too."""


def find_start(checkpoints: Storage, spec: RunSpec, resume: str | None, scratch: Path) -> Start | None:
    """The start for `--resume`: `auto` (own newest, else the spec's start_checkpoint), a path or URI, or None.

    `checkpoints` is the folder of the run's own. Raises CheckpointError where the checkpoint does not fit or none of
    those there is whole, ConfigError where the run's own was made by a config that trains something else.
    """
    if resume is None:
        return None
    if resume == AUTO:
        own = _newest(checkpoints, scratch)
        if own is not None:
            check_fits(own.state, spec.config, own.name)
            _check_same_run(own, spec.config)
            return own
        if spec.start_checkpoint is None:
            return None
        resume = spec.start_checkpoint
    start = _named(resume, checkpoints, scratch)
    check_fits(start.state, spec.config, start.name)
    for field, mine, theirs in _config_differences(start, spec.config):
        print(f"{start.name} was made with {field} = {theirs!r}, this run has {mine!r}", flush=True)
    return start


def adopt_best(start: Start, uri: str, checkpoints: Storage) -> None:
    """Copy the best model so far from beside another run's checkpoint, where it is the one the checkpoint knows of."""
    best = best_point(RunState.from_state_dict(start.state["scheduler_state_dict"]["run"]).points)
    source = open_storage(split_uri(uri)[0])
    try:
        about = source.read_json(f"{BEST}.json")
        if best is None or about["step"] != best.step:
            return
        for ending in ("safetensors", "json"):
            checkpoints.write_bytes(f"{BEST}.{ending}", source.read_bytes(f"{BEST}.{ending}"))
    except NotFoundError:
        return


def _newest(checkpoints: Storage, scratch: Path) -> Start | None:
    steps = sorted((step for key in checkpoints.list() if (step := step_of(key)) is not None), reverse=True)
    problems = []
    for step in steps:
        name = full_name(step)
        try:
            state = _read(checkpoints, name, scratch)
        except DamagedCheckpoint as damage:
            problems.append(Problem("", str(damage)))
            print(f"warning: damaged checkpoint: {damage}; going back to the one before", flush=True)
            continue
        return Start(state, name, own=True)
    if problems:
        raise CheckpointError(problems, source=f"{checkpoints.uri}: no whole checkpoint")
    return None


def _named(resume: str, checkpoints: Storage, scratch: Path) -> Start:
    folder, name = split_uri(resume)
    check_is_full(name)
    try:
        state = _read(open_storage(folder), name, scratch)
    except NotFoundError:
        raise CheckpointError(f"--resume must be 'auto' or a full checkpoint, got {resume!r}: not there") from None
    except DamagedCheckpoint as damage:
        raise CheckpointError(f"damaged: {damage}") from None
    return Start(state, name, own=folder == checkpoints.uri)


def _read(folder: Storage, name: str, scratch: Path) -> dict[str, Any]:
    path = folder.local_path(name)
    if path is not None:
        if not path.is_file():
            raise NotFoundError(f"{path}: not there")
        return read_full(path)
    copy = scratch / name
    folder.download(name, copy)
    try:
        return read_full(copy)
    finally:
        copy.unlink()


def _config_differences(start: Start, config: TrainConfig) -> list[tuple[str, Any, Any]]:
    found = differences(config.model_dump(mode="json"), start.state["config"])
    return [difference for difference in found if not difference[0].startswith("model.")]


def _check_same_run(start: Start, config: TrainConfig) -> None:
    problems = []
    for field, mine, theirs in _config_differences(start, config):
        if field.startswith(_MAY_CHANGE):
            print(f"{start.name} was made with {field} = {theirs!r}, now {mine!r}", flush=True)
        else:
            problems.append(Problem(field, f"must be {theirs!r} as in {start.name}, got {mine!r}"))
    if problems:
        raise ConfigError(
            [*problems, Problem("", "another --run-name starts afresh; --resume PATH takes the checkpoint as it is")],
            source=f"the run in this folder was made by another config ({start.name})",
        )
