"""Tests against a control with pooled variance: Student's t for one arm, Dunnett's for several.

C. W. Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50 (1955).
`scipy.stats.dunnett` integrates by randomised quasi-Monte-Carlo, so two calls differ in the fourth digit; a verdict
must be recomputable, so the two-dimensional integral is done by fixed quadrature here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
from scipy import special, stats

from podium.components.policies.schema import BeatsBaseline
from podium.components.study.schema import Recorded
from podium.components.verdicts.arms import FAILED, Arm
from podium.components.verdicts.verdict import TrialOutcome
from podium.trainer.trial.result import Status

_CHI_NODES = 96
_NORMAL_NODES = 64
"""Enough for 1e-7 with up to ten arms, 5e-5 with two thousand (against 600 × 400 nodes)."""
_NORMAL_LIMIT = 8.5
"""Standard normal mass beyond this is under 2e-17."""


def better_than_control(statistic: float, sizes: Sequence[int], control_size: int, degrees_of_freedom: int) -> float:
    """One-sided p of an arm being better than the control, adjusted for all the arms compared with it.

    `statistic` is (control mean - arm mean) / (pooled SD · sqrt(1/n + 1/n0)), large if the arm is better; `sizes` are
    the seeds of all arms compared. The p is P(max over arms of T >= statistic) if no arm differs from the control
    (normal errors, one variance). With one arm it is Student's t.
    """
    if len(sizes) == 1:
        return float(stats.t.sf(statistic, degrees_of_freedom))
    # Correlated by the shared control: corr(T_i, T_j) = λ_i λ_j with λ_i = sqrt(n_i / (n_i + n_0)), so given the
    # control's normal z and the pooled SD's chi s the arms are independent.
    loads = np.array([math.sqrt(size / (size + control_size)) for size in sizes])
    arms, repeats = np.unique(loads, return_counts=True)
    s, s_weights = _chi_rule(degrees_of_freedom)
    z, z_weights = _normal_rule()
    log_all_below = np.zeros((len(s), len(z)))
    for load, repeat in zip(arms, repeats, strict=True):
        limit = (statistic * s[:, None] + load * z[None, :]) / math.sqrt(1 - load**2)
        log_all_below += repeat * special.log_ndtr(limit)
    # -expm1 keeps the digits of a small p that 1 - product would lose
    p = float(s_weights @ -np.expm1(log_all_below) @ z_weights)
    return min(1.0, max(0.0, p))


def difference_interval(
    difference: float, error: float, degrees_of_freedom: float, alpha: float
) -> tuple[float, float]:
    """Two-sided 1 - 2·alpha interval of a difference of means, for this arm alone (not adjusted for the others)."""
    half = -float(special.stdtrit(degrees_of_freedom, alpha)) * error
    return difference - half, difference + half


@cache
def _chi_rule(degrees_of_freedom: int) -> tuple[Any, Any]:
    """Nodes and weights for the mean over s = sqrt(chi²_df / df), by Gauss-Legendre between its far quantiles."""
    low = math.sqrt(stats.chi2.ppf(1e-14, degrees_of_freedom) / degrees_of_freedom)
    high = math.sqrt(stats.chi2.isf(1e-14, degrees_of_freedom) / degrees_of_freedom)
    nodes, weights = np.polynomial.legendre.leggauss(_CHI_NODES)
    s = low + (nodes + 1) * (high - low) / 2
    density = stats.chi2.pdf(s**2 * degrees_of_freedom, degrees_of_freedom) * 2 * s * degrees_of_freedom
    mass = weights * density
    return s, mass / mass.sum()


@cache
def _normal_rule() -> tuple[Any, Any]:
    nodes, weights = np.polynomial.legendre.leggauss(_NORMAL_NODES)
    z = nodes * _NORMAL_LIMIT
    mass = weights * np.exp(-(z**2) / 2)
    return z, mass / mass.sum()


# The noise of a difference between two arms: one variance for all arms, or each its own where they differ.
#
# With 3 seeds an arm, the variance pooled over arms asks for a third of the margin that each arm's own would. It is
# wrong for an arm that is noisier than the rest: its difference looks surer than it is. So each pair is guarded: an F
# test of the arm's and the control's variance against that of all other arms together, two-sided at 10 % each; where
# it rejects, the pair is compared by Welch's t. Brown-Forsythe's test, robust as it is, has next to no power at 2 to
# 5 seeds.
#
# Sources: B. L. Welch, Biometrika 34 (1947); G. K. Smyth, "Linear models and empirical Bayes methods" (2004) for the
# moderated t, whose limit with one common variance the pooled t is. Limits: normal errors; a pretest costs a little
# of the level, less than the pooling of unequal variances does.

GUARD_LEVEL = 0.10
"""Two-sided level at which an arm's variance counts as different from the others'."""


@dataclass(frozen=True)
class Noise:
    """The standard error of a difference of two means."""

    error: float
    degrees_of_freedom: float
    method: str
    """`pooled` or `welch`."""
    sd: float | None = None
    """The pooled SD; None for Welch's."""


@dataclass(frozen=True)
class Pool:
    """The variance of all arms together, from which each can be set apart."""

    squares: float
    degrees_of_freedom: int

    @classmethod
    def of(cls, arms: Iterable[Arm]) -> Self:
        """Over these arms."""
        able = [arm for arm in arms if arm.n]
        return cls(math.fsum(arm.squares for arm in able), sum(arm.n - 1 for arm in able))

    @property
    def sd(self) -> float | None:
        """None where no arm has two seeds."""
        return math.sqrt(self.squares / self.degrees_of_freedom) if self.degrees_of_freedom > 0 else None

    def differs(self, arm: Arm) -> bool:
        """Whether the arm's variance differs from that of the other arms together."""
        degrees = self.degrees_of_freedom - (arm.n - 1)
        if arm.n < 2 or degrees < 1:
            return False
        own, others = arm.squares, max(0.0, self.squares - arm.squares)
        if own == 0 or others <= 1e-12 * self.squares:
            return own > 0 or others > 0
        ratio = (own / (arm.n - 1)) / (others / degrees)
        upper = float(special.fdtrc(arm.n - 1, degrees, ratio))
        return 2 * min(upper, 1 - upper) < GUARD_LEVEL


def noise_of_difference(arm: Arm, control: Arm, pool: Pool, variance: str = "guarded") -> Noise | None:
    """The noise of `arm` minus `control`, both among the arms of `pool`; None where nothing estimates it.

    `variance` is guarded, pooled or welch.
    """
    welch = _welch(arm, control)
    if variance == "welch":
        return welch
    if not pool.sd:
        return None
    if variance == "guarded" and welch is not None and (pool.differs(arm) or pool.differs(control)):
        return welch
    return Noise(pool.sd * math.sqrt(1 / arm.n + 1 / control.n), pool.degrees_of_freedom, "pooled", pool.sd)


def _welch(arm: Arm, control: Arm) -> Noise | None:
    if arm.n < 2 or control.n < 2:
        return None
    parts = [each.squares / (each.n - 1) / each.n for each in (arm, control)]
    total = math.fsum(parts)
    if total == 0:
        return None
    degrees = total**2 / math.fsum(part**2 / (each.n - 1) for part, each in zip(parts, (arm, control), strict=True))
    return Noise(math.sqrt(total), degrees, "welch")


# Tests of means: one arm against a target, and Holm's correction where several claims are made at once.
#
# Student, "The probable error of a mean", Biometrika 6 (1908); S. Holm, "A simple sequentially rejective multiple test
# procedure", Scandinavian Journal of Statistics 6 (1979).


@dataclass(frozen=True)
class TargetTest:
    """One arm against the target."""

    statistic: float | None
    """t, or z by a known SD; below 0 the mean is under the target. None where nothing estimates the noise."""
    degrees_of_freedom: float | None
    p: float | None
    """One-sided, not adjusted."""
    error: float | None
    """Standard error of the mean."""
    upper: float | None
    """Upper end of the one-sided 1 - alpha interval of the mean."""


def against_target(
    mean: float, sd: float | None, n: int, target: float, *, alpha: float, sigma: float | None = None
) -> TargetTest:
    """One-sided test of mean < target: Student's t by `sd`, or z by a known `sigma`."""
    spread = sigma if sigma is not None else sd
    if spread is None or spread == 0:
        return TargetTest(None, None, None, None, None)
    error = spread / math.sqrt(n)
    statistic = (mean - target) / error
    degrees = None if sigma is not None else n - 1
    p = special.ndtr(statistic) if degrees is None else special.stdtr(degrees, statistic)
    quantile = special.ndtri(alpha) if degrees is None else special.stdtrit(degrees, alpha)
    return TargetTest(statistic, degrees, float(p), error, mean - float(quantile) * error)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p of each (Scandinavian Journal of Statistics 6, 1979)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for index, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        highest = max(highest, min(1.0, (len(p_values) - index) * p))
        adjusted[name] = highest
    return adjusted


# Each arm against the baseline: pooled with Dunnett's correction, Welch's, paired by seed, or against a figure.


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


# Times to a target with misses: a miss is a censored value, at least the time it took, never dropped and no number.
#
# Restricted mean: the area under Kaplan and Meier's curve up to a horizon (E. L. Kaplan, P. Meier, JASA 53, 1958; P.
# Royston, M. K. B. Parmar, "Restricted mean survival time", BMC Medical Research Methodology 13, 2013). PAR-2: a miss
# counts as twice the horizon (the satisfiability competitions' score). Median: where the curve falls to a half;
# unknown where fewer than half of the seeds arrived. A run that was killed, diverged, collapsed or did not fit will
# never arrive: its time is the horizon. Limits: with few seeds each is rough; a miss that was censored before the
# horizon is taken to survive until it, so the restricted mean is the largest that the data allow.


@dataclass(frozen=True)
class Time:
    """One seed's time."""

    seconds: float
    reached: bool
    """False: it would have taken longer."""


@dataclass(frozen=True)
class Times:
    """An arm's seeds up to a horizon."""

    reached: int
    seeds: int
    restricted_mean: float
    par2: float
    median: float | None

    def by(self, statistic: str) -> float:
        """The statistic of this name; an unknown median is beyond any time."""
        value = {"restricted_mean": self.restricted_mean, "par2": self.par2, "median": self.median}[statistic]
        return math.inf if value is None else value


def time_of(outcome: TrialOutcome, horizon: float) -> Time | None:
    """A seed's time; None for one that says nothing (broken, cancelled, not run, or without a clock)."""
    if outcome.time_to_target_seconds is not None:
        return Time(outcome.time_to_target_seconds, reached=True)
    if outcome.status in FAILED:
        return Time(horizon, reached=False)
    if (
        outcome.status in (Status.COMPLETED, Status.MISSED_TARGET, Status.TARGET_REACHED)
        and outcome.training_seconds is not None
    ):
        return Time(outcome.training_seconds, reached=False)
    return None


def horizon_of(outcomes: Sequence[TrialOutcome]) -> float:
    """The longest time that any trial is known to have trained; 0 without any."""
    times = [each for o in outcomes for each in (o.time_to_target_seconds, o.training_seconds) if each is not None]
    return max(times, default=0.0)


def summarise(times: Sequence[Time], horizon: float) -> Times:
    """The three statistics of one arm. Times beyond the horizon count as not reached by then."""
    cut = [Time(min(t.seconds, horizon), t.reached and t.seconds <= horizon) for t in times]
    return Times(
        reached=sum(t.reached for t in cut),
        seeds=len(cut),
        restricted_mean=_area(cut, horizon),
        par2=math.fsum(t.seconds if t.reached else 2 * horizon for t in cut) / len(cut),
        median=_median(cut),
    )


def _steps(times: Sequence[Time]) -> list[tuple[float, float]]:
    """Kaplan and Meier's curve: times at which it falls, and what it falls to. Arrivals come before misses."""
    order = sorted(times, key=lambda t: (t.seconds, not t.reached))
    steps, share, at_risk = [], 1.0, len(order)
    for time in order:
        if time.reached:
            share *= (at_risk - 1) / at_risk
            steps.append((time.seconds, share))
        at_risk -= 1
    return steps


def _area(times: Sequence[Time], horizon: float) -> float:
    area, since, share = 0.0, 0.0, 1.0
    for seconds, below in _steps(times):
        area += share * (seconds - since)
        since, share = seconds, below
    return area + share * (horizon - since)


def _median(times: Sequence[Time]) -> float | None:
    return next((seconds for seconds, share in _steps(times) if share <= 0.5 + 1e-12), None)
