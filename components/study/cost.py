"""What a study costs: expected device-hours and dollars of a stage, from the prices it declares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from podium.components.policies.schema import (
    BeatsBaseline,
    BestMean,
    FastestToTarget,
    ReachesTarget,
    RefineRegion,
    TopPerAxis,
    WithinMargin,
)
from podium.components.study.schema import Price, Study, needs_baseline_run
from podium.components.study.trials import stage_seeds


@dataclass(frozen=True)
class Cost:
    """Trials, device-hours and dollars. None where the study declares nothing to compute it from."""

    trials: int
    gpu_hours: float | None
    """Hours × GPUs; 0 for trials on a CPU."""
    usd: float | None
    hours: float | None
    """Wall-clock hours with the stage's trials in parallel."""


def run_usd(price: Price, devices: int) -> float | None:
    """Expected dollars of one run on this many devices; 0 where the study names no price at all."""
    if price.usd_per_run is not None:
        return price.usd_per_run
    if price.usd_per_gpu_hour is None:
        return 0.0
    if price.minutes_per_run is None:
        return None
    return price.usd_per_gpu_hour * devices * price.minutes_per_run / 60


def usd_of_seconds(price: Price, device_seconds: float) -> float | None:
    """Dollars of device-seconds held. A price per run is charged by `run_usd`, whatever the time."""
    if price.usd_per_run is not None:
        return None
    return (price.usd_per_gpu_hour or 0.0) * device_seconds / 3600


def stage_cost(study: Study, stage: str, arms: int, *, parallel: int | None = None) -> Cost:
    """Expected cost of a stage with this many variants, each with the stage's seeds, so many trials at once."""
    declared = study.stages[stage]
    trials = arms * len(stage_seeds(study, stage))
    gpus = declared.resources.gpus_per_trial
    each = run_usd(declared.price, max(gpus, 1))
    minutes = declared.price.minutes_per_run
    rounds = -(-trials // (parallel or declared.resources.parallel))
    return Cost(
        trials=trials,
        gpu_hours=0.0 if gpus == 0 else None if minutes is None else trials * gpus * minutes / 60,
        usd=None if each is None else round(trials * each, 6),
        hours=None if minutes is None else rounds * minutes / 60,
    )


def total(values: Iterable[float | None]) -> float | None:
    """The sum, None if a part is unknown: a missing figure is never a zero."""
    parts = list(values)
    known = [value for value in parts if value is not None]
    return round(math.fsum(known), 6) if len(known) == len(parts) else None


# How many variants a policy lets go on, the fewest and the most, and what the way to the end costs with them.
#
# What may go on is capped by money: a second variant is worth nothing if the stages after can then not be paid.


@dataclass(frozen=True)
class Counted:
    """Variants that take part in a stage, the baseline included."""

    fewest: int
    most: int
    has_baseline: bool
    planned: int | None = None
    """How many there are meant to be, where that is not the most."""

    @property
    def likely(self) -> int:
        """What a plan counts."""
        return self.most if self.planned is None else self.planned


def go_on(study: Study, stage: str, here: Counted, *, axes: int | None = None, spent: float | None = None) -> Counted:
    """Who takes part in the stage after this one.

    `axes` is how many of the study's axes are selected, all by default; `spent` caps by the budget what may go on.
    """
    policy = study.stages[stage].promotion
    stages = list(study.stages)
    following = stages[stages.index(stage) + 1 :][:1]
    needs_baseline = bool(following) and needs_baseline_run(study, following[0])
    if isinstance(policy, TopPerAxis):
        axes = len(study.axes) if axes is None else axes
        most = min(here.most, int(policy.keep_baseline) + axes) + int(policy.combine and axes > 1)
        return Counted(1, most, policy.keep_baseline)
    if isinstance(policy, BestMean):
        return Counted(1, min(here.most, 1 + int(needs_baseline)), needs_baseline)
    if isinstance(policy, WithinMargin | BeatsBaseline):
        joins = int(needs_baseline and policy.keep_baseline)
        most = min(max(1, here.most - int(here.has_baseline)), policy.most)
        if isinstance(policy, WithinMargin) and following and spent is not None:
            most = max(1, payable(study, following[0], spent, most, baseline=bool(joins)))
        return Counted(1 + joins, most + joins, bool(joins))
    if isinstance(policy, ReachesTarget):
        return Counted(1, 1, False)
    if isinstance(policy, FastestToTarget):
        return Counted(1, min(here.most, policy.top), False)
    if isinstance(policy, RefineRegion):
        # a point each here, and repeats of some: it is the trials that are designed
        return Counted(policy.trials - policy.slack, policy.trials + policy.slack, False, policy.trials)
    return here


def payable(study: Study, stage: str, spent: float, most: int, *, baseline: bool) -> int:
    """How many variants the stage can be paid for, up to `most`, so that the stages after it can be paid too."""
    limit = study.budget.usd
    for arms in range(most, 0, -1):
        needed = total([spent, usd_to_end(study, stage, arms + int(baseline))])
        if limit is None or needed is None or needed <= limit + 1e-9:
            return arms
    return 0


def usd_to_end(study: Study, stage: str, arms: int) -> float | None:
    """Dollars of a stage with this many arms, and of what comes after with the fewest; None where one is unknown."""
    stages = list(study.stages)
    parts: list[float | None] = []
    here = Counted(arms, arms, False)
    for name in stages[stages.index(stage) :]:
        recorded = int(here.has_baseline and name in study.baseline.recorded)
        parts.append(stage_cost(study, name, here.fewest - recorded).usd)
        here = go_on(study, name, here)
    gpus = study.stages[stages[-1]].resources.gpus_per_trial
    parts.append(run_usd(study.evaluation.price, max(gpus, 1)))
    return total(parts)


def pivots(study: Study, stage: str) -> int:
    """Variants that a stage may try besides."""
    policy = study.stages[stage].promotion
    rule = policy.pivot if isinstance(policy, BeatsBaseline | ReachesTarget) else None
    return rule.most if rule is not None else 0


def evaluated_arms(study: Study, most: int) -> int:
    """How many arms of the last stage are evaluated, of `most` that may be ranked there."""
    policy = study.stages[list(study.stages)[-1]].promotion
    return min(most, policy.top) if isinstance(policy, FastestToTarget) else most


def fallback_trials(study: Study, stage: str, trials: int) -> dict[str, int]:
    """What a fallback of the stage would run besides its `trials`, at most; two of them never come together."""
    policy = study.stages[stage].promotion
    if not isinstance(policy, FastestToTarget | RefineRegion):
        return {}
    found = {}
    if policy.fallbacks.repeat is not None:
        found["repeats"] = min(policy.fallbacks.repeat.leaders, trials) * (policy.fallbacks.repeat.runs - 1)
    if policy.fallbacks.tighten is not None:
        found["a tighter target"] = trials
    return found
