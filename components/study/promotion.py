"""Promotion policies as a study declares them. What each decides, and how, is in `components.verdicts`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from podium.trainer.config import Section

Metric = Literal["final_val_loss", "final_val_perplexity", "final_bits_per_byte", "best_val_loss"]
"""What a trial's `result.json` measures and a policy can rank by. Lower is better for every one of them."""


class Policy(Section):
    """What every policy has."""

    metric: Metric = "final_val_loss"


class Always(Policy):
    """Everything that ran goes on; nothing is ranked."""

    policy: Literal["always"] = "always"


class TopPerAxis(Policy):
    """The best value of each axis goes on, with all of them combined and the baseline as finalists."""

    policy: Literal["top_per_axis"] = "top_per_axis"
    combine: bool = True
    """Add the variant that takes the top value of every axis."""
    keep_baseline: bool = True
    """The baseline goes on as well, so that the next stage can be compared with it."""


class BestMean(Policy):
    """The best mean over seeds wins; it is proven if it beats the baseline at `alpha` with pooled variance."""

    policy: Literal["best_mean"] = "best_mean"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """One-sided level of the test against the baseline, over all comparisons of the stage."""
    near_tie: float = Field(default=0.0, ge=0)
    """Means closer than this (in the metric's unit) are a near tie; the smaller spread goes first."""


Promotion = Annotated[Always | TopPerAxis | BestMean, Field(discriminator="policy")]
