"""The sequence-length curriculum, as a config, and what it makes of one optimizer step. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.section import Section


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one optimizer step trains on, over all ranks."""

    sequences: int
    length: int
    """Tokens of each sequence."""
    cropped: bool = False
    """Whether each is the beginning of a longer sequence, whose rest is left out; else the tokens are cut anew."""

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return self.sequences * self.length


class CurriculumConfig(Section):
    """Sequence lengths that grow, each left once the training loss has reached a plateau.

    A plateau: at a step that is a multiple of `window` steps after the length began, two windows or more, the mean
    training loss of the last `window` steps is less than `min_improvement` nats below that of the window before. The
    evaluation is at full length always.
    """

    lengths: list[int] = Field(default=[256, 512, 768, 1024], min_length=2)
    """Tokens of a sequence, ascending; the last is `data.sequence_length`."""
    mode: Literal["crop", "reshape"] = "crop"
    """crop: each sequence is cut short, so that a step has fewer tokens; reshape: the step's tokens are cut into more
    sequences, so that it keeps them, to within one sequence."""
    window: int = Field(default=50, gt=0)
    """Optimizer steps over which losses are averaged."""
    min_improvement: float = Field(default=0.05, ge=0)
    """Nats."""
    latest_fraction: float | None = Field(default=0.6, gt=0, lt=1)
    """Share of the run's steps after which the length is full whatever the loss did: the i-th of n moves up comes after
    i / n of it at the latest. Null: only a plateau moves up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lengths[0] < 2 or self.lengths != sorted(set(self.lengths)):
            raise ValueError(f"lengths must ascend from at least 2, got {self.lengths}")
        return self

    def shape(self, sequences: int, full_length: int, length: int) -> StepShape:
        """A step at `length`, of a run whose steps have `sequences` of `full_length`."""
        if length == full_length:
            return StepShape(sequences, length)
        if self.mode == "crop":
            return StepShape(sequences, length, cropped=True)
        return StepShape(sequences * full_length // length, length)

    def keeps_tokens(self, sequences: int, full_length: int) -> bool:
        """Whether every step has exactly the tokens of a full one, so that evaluations come at known counts."""
        return all(
            self.shape(sequences, full_length, length).tokens == sequences * full_length for length in self.lengths
        )
