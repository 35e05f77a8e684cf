"""Checkpoint files: what they are called, what is in them, and which one a run may go on from.

    ckpt-step-<n>.pt             full: everything from which training goes on bit for bit
    model-step-<n>.safetensors   weights alone, with model-step-<n>.json beside them
    best-model.*, final-model.*  the same two files for the lowest evaluation loss so far, and for the end

A full checkpoint is a zip file, so every part has a CRC; it holds plain types and tensors only and is read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from podium.trainer.config import FORMAT_VERSION, TrainConfig, load_config
from podium.trainer.errors import CheckpointError, Problem
from podium.trainer.extension import build_run_model

FULL_KEYS = (
    "format_version",
    "step",
    "preset",
    "mode",
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "config",
    "python_random_state",
    "numpy_random_state",
    "torch_rng_state",
    "cuda_rng_state_if_available",
    "loader_state",
)
"""`scheduler_state_dict` holds what the schedules of a run follow from: the step and its rate, the evaluations so far
(the state of every stop rule), the training clock, the loss scale, and of a mixture what its routers did since the last
record of it and the looks for a collapse."""
SIDECAR_KEYS = ("format_version", "step", "preset", "mode", "config", "metrics_summary")

BEST, FINAL = "best-model", "final-model"
_FULL_NAME = re.compile(r"ckpt-step-(\d+)\.pt")


class DamagedCheckpoint(Exception):  # noqa: N818  not an error by itself: the one before may serve
    """The file is not a whole checkpoint."""


def full_name(step: int) -> str:
    """`ckpt-step-<n>.pt`."""
    return f"ckpt-step-{step}.pt"


def model_name(step: int) -> str:
    """`model-step-<n>`, without the ending."""
    return f"model-step-{step}"


def step_of(name: str) -> int | None:
    """The step of a full checkpoint's file name; None for any other name."""
    match = _FULL_NAME.fullmatch(name)
    return int(match[1]) if match else None


def header(config: TrainConfig, step: int) -> dict[str, Any]:
    """What both outputs have: format_version, step, preset, mode, config."""
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "preset": config.preset,
        "mode": config.mode,
        "config": config.model_dump(mode="json"),
    }


def read_full(path: Path) -> dict[str, Any]:
    """A full checkpoint, on the CPU. Raises DamagedCheckpoint, or CheckpointError where it is of another format."""
    check_is_full(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # torch itself does not compare the sums
        if bad is not None:
            raise DamagedCheckpoint(f"{path.name}: {bad} does not have its CRC")
        # on the CPU: a copy on the GPU is what makes a resume run out of memory
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, UnpicklingError) as error:
        raise DamagedCheckpoint(f"{path.name}: {error or type(error).__name__}") from None
    if not isinstance(state, dict) or "format_version" not in state:
        raise CheckpointError(f"{path.name}: must be a checkpoint of Podium, got a file without format_version")
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path.name}: format_version must be {FORMAT_VERSION}, got {state['format_version']!r}")
    missing = [key for key in FULL_KEYS if key not in state]
    if missing:
        raise DamagedCheckpoint(f"{path.name}: has no {', '.join(missing)}")
    return state


def check_is_full(name: str) -> None:
    """Refuse a model-only file: it has no optimizer, loader or random state. Raises CheckpointError."""
    if not name.endswith(".pt"):
        raise CheckpointError(
            f"--resume takes a full checkpoint (ckpt-step-<n>.pt), got {name}"
            + (": weights alone can't be trained on bit for bit" if name.endswith(".safetensors") else "")
        )


def check_fits(state: dict[str, Any], config: TrainConfig, name: str) -> None:
    """Refuse a checkpoint of another mode or architecture. Raises CheckpointError with every difference."""
    problems = []
    if state["mode"] != config.mode:
        problems.append(Problem("mode", f"must be {config.mode!r}, got {state['mode']!r}"))
    problems += [
        Problem(f"model.{field}", f"must be {mine!r}, got {theirs!r}")
        for field, mine, theirs in differences(config.model_dump(mode="json")["model"], state["config"]["model"])
        # how the dimensions were asked for, which are compared themselves, and where the first weights came from
        if field not in ("allocation", "source")
    ]
    if problems:
        raise CheckpointError(problems, source=f"{name}: a checkpoint of another architecture")


def differences(mine: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted field, mine, theirs) for every field that differs."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def load_model(path: Path) -> tuple[nn.Module, TrainConfig]:
    """A model in evaluation mode, on the CPU, from `<name>.safetensors` and the `<name>.json` beside it.

    Raises CheckpointError where a file is missing, damaged or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise CheckpointError(f"a model is <name>.safetensors with <name>.json beside it, got {path.name}")
    sidecar = path.with_suffix(".json")
    try:
        about = json.loads(sidecar.read_text())
        weights = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{Path(error.filename or path)}: not there") from None
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: damaged: {error}") from None
    missing = [key for key in SIDECAR_KEYS if key not in about]
    if missing:
        raise CheckpointError(f"{sidecar.name}: has no {', '.join(missing)}")
    if about["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{sidecar.name}: format_version must be {FORMAT_VERSION}, got {about['format_version']}")
    config = load_config(about["config"], source=sidecar.name)
    model = build_run_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path.name}: does not fit its {sidecar.name}: {error}") from None
    return model.eval(), config
