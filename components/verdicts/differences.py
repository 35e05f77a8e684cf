"""Each arm against the baseline: pooled with Dunnett's correction, Welch's, paired by seed, or against a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy import special

from podium.components.study.promotion import BeatsBaseline
from podium.components.study.schema import Recorded
from podium.components.verdicts.noise import Pool, noise_of_difference
from podium.components.verdicts.ranking import Arm
from podium.components.verdicts.significance import better_than_control, difference_interval
from podium.components.verdicts.target import holm


@dataclass(frozen=True)
class Compared:
    """One arm against what it has to beat."""

    arm: Arm
    difference: float
    method: str
    """pooled, welch, paired, or descriptive (a recorded figure or a threshold); none where nothing estimates noise."""
    error: float | None = None
    degrees_of_freedom: float | None = None
    statistic: float | None = None
    """Large if the arm is better by more than the margin."""
    p: float | None = None
    """One-sided, adjusted for the other arms."""
    interval: tuple[float, float] | None = None
    worse_seeds: tuple[int, ...] = ()
    """Seeds that are not better than the baseline."""


def compare_arms(
    others: list[Arm], control: Arm | None, order: list[Arm], mark: Recorded, policy: BeatsBaseline
) -> list[Compared]:
    """Each arm against the baseline that was run, or against the recorded figure or threshold in `mark`."""
    if control is None:
        compared = [_against_figure(arm, mark, policy) for arm in others]
    elif policy.paired:
        compared = [_paired(arm, control, policy) for arm in others]
    else:
        pool = Pool.of(order)
        compared = [_unpaired(arm, control, pool, policy) for arm in others]
    if control is not None and len(others) > 1 and all(each.method == "pooled" for each in compared):
        sizes = [arm.n for arm in others]
        return [
            replace(each, p=better_than_control(each.statistic, sizes, control.n, int(each.degrees_of_freedom)))
            if each.statistic is not None and each.degrees_of_freedom is not None
            else each
            for each in compared
        ]
    adjusted = holm({each.arm.name: each.p for each in compared if each.p is not None})
    return [replace(each, p=adjusted.get(each.arm.name)) for each in compared]


def _unpaired(arm: Arm, control: Arm, pool: Pool, policy: BeatsBaseline) -> Compared:
    difference = arm.mean - control.mean
    worse = tuple(seed for seed, value in sorted(arm.values.items()) if value >= control.mean)
    noise = noise_of_difference(arm, control, pool, policy.variance)
    if noise is None:
        return Compared(arm, difference, "none", worse_seeds=worse)
    return _tested(arm, difference, noise.method, noise.error, noise.degrees_of_freedom, worse, policy)


def _paired(arm: Arm, control: Arm, policy: BeatsBaseline) -> Compared:
    shared = sorted(arm.values.keys() & control.values.keys())
    if not shared:
        return Compared(arm, arm.mean - control.mean, "none")
    gaps = [arm.values[seed] - control.values[seed] for seed in shared]
    difference = math.fsum(gaps) / len(gaps)
    worse = tuple(seed for seed, gap in zip(shared, gaps, strict=True) if gap >= 0)
    squares = math.fsum((gap - difference) ** 2 for gap in gaps)
    if len(gaps) < 2 or squares == 0:
        return Compared(arm, difference, "none", worse_seeds=worse)
    error = math.sqrt(squares / (len(gaps) - 1) / len(gaps))
    return _tested(arm, difference, "paired", error, len(gaps) - 1, worse, policy)


def _against_figure(arm: Arm, mark: Recorded, policy: BeatsBaseline) -> Compared:
    """By the arm's own spread, with the recorded one's where its SD and n are known."""
    difference = arm.mean - mark.mean
    worse = tuple(seed for seed, value in sorted(arm.values.items()) if value >= mark.mean)
    if arm.sd is None or arm.sd == 0:
        return Compared(arm, difference, "none", worse_seeds=worse)
    parts = [(arm.sd**2 / arm.n, arm.n - 1)]
    if mark.sd is not None and mark.n is not None and mark.n > 1:
        parts.append((mark.sd**2 / mark.n, mark.n - 1))
    variance = math.fsum(part for part, _ in parts)
    degrees = variance**2 / math.fsum(part**2 / df for part, df in parts)
    return _tested(arm, difference, "descriptive", math.sqrt(variance), degrees, worse, policy)


def _tested(
    arm: Arm,
    difference: float,
    method: str,
    error: float,
    degrees: float,
    worse: tuple[int, ...],
    policy: BeatsBaseline,
) -> Compared:
    statistic = -(difference + policy.margin) / error
    return Compared(
        arm,
        difference,
        method,
        error,
        degrees,
        statistic,
        float(special.stdtr(degrees, -statistic)),
        difference_interval(difference, error, degrees, policy.alpha),
        worse,
    )


def holds(each: Compared, policy: BeatsBaseline) -> bool:
    """Whether the arm is shown to be better, by every seed where that is asked."""
    return each.p is not None and each.p < policy.alpha and not (policy.every_seed and each.worse_seeds)
