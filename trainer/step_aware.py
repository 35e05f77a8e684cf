"""Models that want to know which step comes: an addition to the models' contract that most need not know of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class StepAware(Protocol):
    """A model, a user's own too, that is told every optimizer step before it.

    Where parameters are without a gradient in some steps, it has `changes_layers = True` besides: gradients are then
    averaged over ranks by those that have one, which must be the same on every rank.
    """

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Step `step` of `steps` (1 … steps) comes. What is decided here must follow from these three alone, so that
        every rank and every resumed run decides alike."""


def begin_step(model: nn.Module, step: int, steps: int, seed: int) -> None:
    """Tell the model, if it wants to know."""
    if isinstance(model, StepAware):
        model.begin_step(step, steps, seed)


@runtime_checkable
class Projected(Protocol):
    """A model that brings its weights back to where they belong after the optimizer has moved them."""

    def after_step(self, step: int) -> None:
        """Optimizer step `step` (from 1) is done. The same weights must follow on every rank."""


def after_step(model: nn.Module, step: int) -> None:
    """Tell the model, if it wants to know."""
    if isinstance(model, Projected):
        model.after_step(step)
