"""Promotion policies as a study declares them. What each decides, and how, is in `components.verdicts`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from podium.trainer.trial.section import Section
from podium.trainer.trial.units import Seconds

Metric = Literal[
    "final_val_loss", "final_val_perplexity", "final_bits_per_byte", "best_val_loss", "time_to_target_seconds"
]
"""What a trial's `result.json` measures and a policy can rank by. Lower is better for every one of them."""


TIME: Metric = "time_to_target_seconds"
"""Compared only between trials that had a device of one type to themselves."""


class Policy(Section):
    """What every policy has."""

    metric: Metric = "final_val_loss"


class Pivot(Section):
    """What to do where the arm that was promoted does not hold: try the next best of the stage before."""

    most: int = Field(default=1, ge=1)
    """Pivots that the stage may take, one arm each."""
    when: Literal["not_shown", "futile"] = "not_shown"
    """not_shown: whenever the rule does not promote. futile: only where another look with as many fresh seeds would
    succeed with less than `futility`; an arm that is neither shown nor futile goes on as a candidate."""
    futility: float = Field(default=0.1, gt=0, lt=1)
    """Predictive probability of success under which an arm is given up."""


class Always(Policy):
    """Everything that ran goes on; nothing is ranked."""

    policy: Literal["always"] = "always"


class IfAffordable(Policy):
    """Everything that ran goes on; what could not be paid was not run, and that stops nothing."""

    policy: Literal["if_affordable"] = "if_affordable"


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


class WithinMargin(Policy):
    """Every variant within δ of the leader goes on, capped by count and by money."""

    policy: Literal["within_margin"] = "within_margin"
    margin: float = Field(default=0.0, ge=0)
    """δ in the metric's unit: a difference that does not matter."""
    alpha: float | None = Field(default=None, gt=0, lt=0.5)
    """Widens δ by what seeds can't tell apart: t(1 - alpha) · pooled SD · sqrt(1/n + 1/n_leader). None: by nothing."""
    sigma: float | None = Field(default=None, gt=0)
    """A known SD over seeds, used with `alpha` instead of the pooled one (a stage with one seed has none)."""
    most: int = Field(default=2, ge=1)
    """Variants that go on at most, the baseline not counted."""
    keep_baseline: bool = True
    """The baseline goes on as well, to be compared with, where the next stage has no recorded figure or threshold."""
    tie_break: Literal["spread", "mean"] = "spread"
    """Who goes first among those within `margin`: the smallest SD over seeds, or the best mean."""


class BeatsBaseline(Policy):
    """Variants better than the baseline by more than `margin` go on; what does not hold gives way to a pivot."""

    policy: Literal["beats_baseline"] = "beats_baseline"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """One-sided level, over all comparisons of the stage."""
    margin: float = Field(default=0.0, ge=0)
    """Superiority margin in the metric's unit: the variant has to be better by more than this."""
    paired: bool = False
    """Compare seed by seed. To be declared: it needs a baseline with the same seeds, and pays where they correlate."""
    variance: Literal["guarded", "pooled", "welch"] = "guarded"
    """guarded: pooled over arms, Welch's for an arm whose variance differs from the others'."""
    every_seed: bool = False
    """Also ask that each seed is better than the baseline's mean (than its own baseline seed where paired)."""
    threshold: float | None = None
    """Compared with where no baseline is run or recorded for the stage: the mean has to be under it."""
    threshold_source: str = ""
    """Where the threshold comes from. Needed with one."""
    most: int = Field(default=1, ge=1)
    """Variants that go on at most, the best first."""
    keep_baseline: bool = True
    """The baseline goes on as well, to be compared with, where the next stage has no recorded figure or threshold."""
    pivot: Pivot | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.threshold is not None and not self.threshold_source:
            raise ValueError("threshold_source must say where the threshold comes from, got none")
        return self


class ReachesTarget(Policy):
    """The best variant whose mean is shown to be under the target goes on; none is a stop."""

    policy: Literal["reaches_target"] = "reaches_target"
    target: float
    """In the metric's unit."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """One-sided level, over all variants of the stage."""
    sigma: float | None = Field(default=None, gt=0)
    """A known SD over seeds: a z test. None: Student's t by the variant's own SD."""
    pivot: Pivot | None = None


class Repeats(Section):
    """Where times vary too much from seed to seed: the leaders again, and the median."""

    above_cv: float = Field(default=0.10, gt=0)
    """Coefficient of variation over replicates (SD / mean, pooled over variants) above which times vary too much."""
    leaders: int = Field(default=5, ge=1)
    """Variants that are run again."""
    runs: int = Field(default=3, ge=2, le=10)
    """Runs that each of them has then."""


class Tightening(Section):
    """Where the times are all alike: a tighter target, to which the stopped trials go on from their checkpoints."""

    below_spread: float = Field(default=0.10, gt=0)
    """(longest - shortest) / median of the reached times under which they are all alike."""
    target: float = Field(gt=0)
    """The tighter target loss."""


class Fallbacks(Section):
    """What is done where the plan for a stage of times does not serve. Each is on the ledger with its numbers."""

    relax: float | None = Field(default=None, gt=0)
    """Nobody reached the target: rank by the time to this loss, which the trials have timed too."""
    repeat: Repeats | None = None
    tighten: Tightening | None = None


class FastestToTarget(Policy):
    """The variants with the least time to the target go on; a miss counts as at least the time it took."""

    policy: Literal["fastest_to_target"] = "fastest_to_target"
    metric: Metric = "time_to_target_seconds"
    horizon_seconds: Seconds | None = Field(default=None, gt=0)
    """Time up to which the restricted mean is taken and whose double PAR-2 charges for a miss. None: the longest time
    that any trial of the stage trained."""
    by: Literal["restricted_mean", "par2", "median"] = "restricted_mean"
    """The statistic that ranks; all three are in the verdict."""
    top: int = Field(default=1, ge=1)
    """Variants that go on."""
    fallbacks: Fallbacks = Fallbacks()


class RefineRegion(Policy):
    """A designed experiment around the best variants is the next stage: what they share is locked, the rest varied."""

    policy: Literal["refine_region"] = "refine_region"
    top: int = Field(default=5, ge=2)
    """Variants whose values span the region."""
    fields: list[str] = Field(default=[], max_length=12)
    """Config fields that the design may vary. Empty: every field in which the stage's variants differ."""
    trials: int = Field(default=36, ge=9)
    """Trials of the design, repeats included."""
    slack: int = Field(default=4, ge=0)
    """Trials by which it may differ from `trials`."""
    margin: float = Field(default=0.15, ge=0, le=1)
    """Widens a numeric field's range at either end by this share of it, within what the field allows."""
    log: list[str] = []
    """Fields varied on a logarithmic scale."""
    multiple_of: dict[str, float] = {}
    """Field → its values are multiples of this."""
    bounds: dict[str, list[float]] = {}
    """Field → [least, largest] value that the design may use."""
    by: Literal["restricted_mean", "par2", "median"] = "restricted_mean"
    """How times to target rank the variants; other metrics rank by their mean."""
    horizon_seconds: Seconds | None = Field(default=None, gt=0)
    """As in fastest_to_target."""
    fallbacks: Fallbacks = Fallbacks()
    """As in fastest_to_target, where times rank."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field, pair in self.bounds.items():
            if len(pair) != 2 or not pair[0] < pair[1]:
                raise ValueError(f"bounds of {field} must be [least, largest], got {pair}")
        return self


Promotion = Annotated[
    Always
    | TopPerAxis
    | BestMean
    | IfAffordable
    | WithinMargin
    | BeatsBaseline
    | ReachesTarget
    | FastestToTarget
    | RefineRegion,
    Field(discriminator="policy"),
]
