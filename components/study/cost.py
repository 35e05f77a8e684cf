"""What a study costs: expected device-hours and dollars of a stage, from the prices it declares."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from podium.components.study.policy import ArmCount, policy_of
from podium.components.study.schema import Price, Study
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


# What the way to the end costs with the variants that a policy promotes.
#
# What may be promoted is capped by money: a second variant is worth nothing if the stages after can then not be paid.


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
    here = ArmCount(arms, arms, False)
    for name in stages[stages.index(stage) :]:
        recorded = int(here.has_baseline and name in study.baseline.recorded)
        parts.append(stage_cost(study, name, here.fewest - recorded).usd)
        here = policy_of(study, name).next_arms(study, name, here)
    gpus = study.stages[stages[-1]].resources.gpus_per_trial
    parts.append(run_usd(study.evaluation.price, max(gpus, 1)))
    return total(parts)
