"""The stop rule of a run to a target, as a config."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from podium.trainer.section import Section


class TargetRule(Section):
    """Stop at the first evaluation whose loss is under `loss`.

    A run that does all its steps, or runs out of time, without that has missed its target.
    """

    loss: float = Field(gt=0)
    """Validation loss in nats per token."""
    also: list[float] = []
    """Other losses whose first crossing is recorded. They stop nothing."""
    near: float = Field(default=0.25, ge=0)
    """Nats above a loss that is still to be crossed, at which evaluations become denser. The last evaluation or the
    last training loss says how far it is, whichever is lower."""
    near_every_steps: int | None = Field(default=5, gt=0)
    """Steps between evaluations there; null: no denser than elsewhere."""

    @property
    def losses(self) -> list[float]:
        """All that are recorded, the first to be crossed first."""
        return sorted({self.loss, *self.also}, reverse=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(loss <= 0 for loss in self.also):
            raise ValueError(f"also must be losses above 0, got {self.also}")
        return self
