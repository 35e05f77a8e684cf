"""A whole run's state as the parts of a full checkpoint, and back."""

from __future__ import annotations

from typing import Any

from podium.trainer.clock import Clock
from podium.trainer.errors import CheckpointError
from podium.trainer.resume import Start
from podium.trainer.seeding import random_state, restore_random_state
from podium.trainer.setup import Parts
from podium.trainer.state import RunState


def take(parts: Parts, state: RunState, clock: Clock) -> dict[str, Any]:
    """All keys of a full checkpoint but its header; tensors are the living ones."""
    scaler = parts.stepper.scaler
    return {
        "model_state_dict": parts.model.state_dict(),
        "optimizer_state_dict": parts.optimizer.state_dict(),
        "scheduler_state_dict": {
            "step": state.step,
            "learning_rate": parts.optimizer.param_groups[0]["lr"],
            "run": state.state_dict(),
            "clock": clock.state_dict(),
            "curriculum": parts.curriculum.state_dict(),
            "routing": None if parts.routing is None else parts.routing.state_dict(),
            "loss_scale": None if scaler is None else scaler.state_dict(),
        },
        **random_state(),
        "loader_state": parts.loader.state_dict(),
    }


def restore(start: Start, parts: Parts, clock: Clock) -> RunState:
    """Put a checkpoint into `parts` and `clock`. Raises CheckpointError where it is past the run's end."""
    held, schedule = start.state, start.state["scheduler_state_dict"]
    if held["step"] > parts.config.steps:
        raise CheckpointError(f"{start.name}: must be of a step up to {parts.config.steps}, got step {held['step']}")
    parts.model.load_state_dict(held["model_state_dict"])
    parts.optimizer.load_state_dict(held["optimizer_state_dict"])
    parts.loader.load_state_dict(held["loader_state"])
    if parts.stepper.scaler is not None and schedule["loss_scale"] is not None:
        parts.stepper.scaler.load_state_dict(schedule["loss_scale"])
    clock.load_state_dict(schedule["clock"])
    parts.curriculum.load_state_dict(schedule["curriculum"])
    if parts.routing is not None:
        parts.routing.load_state_dict(schedule["routing"])
    restore_random_state(held)
    return RunState.from_state_dict(schedule["run"])
