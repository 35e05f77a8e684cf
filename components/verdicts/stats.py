"""The statistics of verdicts, each in one place: pooled and Welch's variances, t, Dunnett, Holm, intervals, and times.

Every test is of means of roughly normal figures. A verdict must be recomputable from its JSON, so nothing here draws
random numbers, and sums are exact (`math.fsum`), so that no order of seeds changes a result.

scipy and numpy take half a second to load, and every study that is read loads the policies, which import this module:
they are imported by the functions that compute with them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

from podium.components.study.schema import Recorded
from podium.components.study.verdict import Arm, TrialOutcome, mean_of, squared_deviations
from podium.components.verdicts.arms import FAILED
from podium.trainer.trial.result import Status

# Quantiles and intervals.


def t_quantile(alpha: float, degrees_of_freedom: float) -> float:
    """What Student's t exceeds with probability alpha."""
    from scipy import special

    return float(-special.stdtrit(degrees_of_freedom, alpha))


def two_sided_p(t: float, degrees_of_freedom: float) -> float:
    """Probability that Student's t is at least this far from 0."""
    from scipy import special

    return 2 * float(special.stdtr(degrees_of_freedom, -abs(t)))


def normal_quantile(alpha: float) -> float:
    """What a standard normal exceeds with probability alpha."""
    from scipy import special

    return float(-special.ndtri(alpha))


def normal_cdf(x: float) -> float:
    """Probability that a standard normal is below x."""
    from scipy import special

    return float(special.ndtr(x))


def interval(estimate: float, error: float, degrees_of_freedom: float, alpha: float) -> tuple[float, float]:
    """Two-sided 1 - 2·alpha interval of a mean or a difference by Student's t, not adjusted for any other."""
    half = t_quantile(alpha, degrees_of_freedom) * error
    return estimate - half, estimate + half


# The noise of a mean or of a difference: one variance for all arms, or each its own where they differ.
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
class PooledVariance:
    """The mean square within groups: the variance of all of them together, each about its own mean."""

    squares: float
    degrees_of_freedom: int

    @classmethod
    def of(cls, groups: Iterable[Collection[float]]) -> Self:
        """Over groups of figures; those without one count nothing."""
        able = [group for group in groups if group]
        return cls(math.fsum(map(squared_deviations, able)), sum(len(group) - 1 for group in able))

    @property
    def variance(self) -> float | None:
        """None where no group has two figures."""
        return self.squares / self.degrees_of_freedom if self.degrees_of_freedom > 0 else None

    @property
    def sd(self) -> float | None:
        """None where no group has two figures."""
        return None if self.variance is None else math.sqrt(self.variance)

    def differs(self, arm: Arm) -> bool:
        """Whether the arm's variance differs from that of the other groups together."""
        from scipy import special

        degrees = self.degrees_of_freedom - (arm.n - 1)
        if arm.n < 2 or degrees < 1:
            return False
        own, others = arm.squares, max(0.0, self.squares - arm.squares)
        if own == 0 or others <= 1e-12 * self.squares:
            return own > 0 or others > 0
        ratio = (own / (arm.n - 1)) / (others / degrees)
        upper = float(special.fdtrc(arm.n - 1, degrees, ratio))
        return 2 * min(upper, 1 - upper) < GUARD_LEVEL


def pooled_over(arms: Iterable[Arm]) -> PooledVariance:
    """The variance pooled over arms: the same noise is assumed in each."""
    return PooledVariance.of(arm.values.values() for arm in arms)


@dataclass(frozen=True)
class StandardError:
    """Of a difference of two means."""

    error: float
    degrees_of_freedom: float
    method: str
    """`pooled` or `welch`."""


def error_of_difference(
    arm: Arm, control: Arm, pool: PooledVariance, variance: str = "guarded"
) -> StandardError | None:
    """The noise of `arm` minus `control`, both among the arms of `pool`; None where nothing estimates it.

    `variance` is guarded, pooled or welch.
    """
    each = [(arm.squares / (arm.n - 1) / arm.n, arm.n - 1) for arm in (arm, control) if arm.n > 1]
    welch = welch_error(each) if len(each) == 2 else None
    if variance == "welch":
        return welch
    if not pool.sd:
        return None
    if variance == "guarded" and welch is not None and (pool.differs(arm) or pool.differs(control)):
        return welch
    return StandardError(pool.sd * math.sqrt(1 / arm.n + 1 / control.n), pool.degrees_of_freedom, "pooled")


def welch_error(parts: Sequence[tuple[float, int]]) -> StandardError | None:
    """By each side's own variance, with Welch's and Satterthwaite's degrees of freedom; None without any spread.

    `parts` are the variances of the sides' means, with the degrees of freedom of each.
    """
    total = math.fsum(part for part, _ in parts)
    if total == 0:
        return None
    degrees = total**2 / math.fsum(part**2 / df for part, df in parts)
    return StandardError(math.sqrt(total), degrees, "welch")


# Several arms against one control: Dunnett's test.
#
# C. W. Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50 (1955).
# `scipy.stats.dunnett` integrates by randomised quasi-Monte-Carlo, so two calls differ in the fourth digit; a verdict
# must be recomputable, so the two-dimensional integral is done by fixed quadrature here.

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
    import numpy as np
    from scipy import special

    if len(sizes) == 1:
        return float(special.stdtr(degrees_of_freedom, -statistic))
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


@cache
def _chi_rule(degrees_of_freedom: int) -> tuple[Any, Any]:
    """Nodes and weights for the mean over s = sqrt(chi²_df / df), by Gauss-Legendre between its far quantiles."""
    import numpy as np
    from scipy import special

    half = degrees_of_freedom / 2.0
    low = math.sqrt(2 * special.gammaincinv(half, 1e-14) / degrees_of_freedom)
    high = math.sqrt(special.chdtri(degrees_of_freedom, 1e-14) / degrees_of_freedom)
    nodes, weights = np.polynomial.legendre.leggauss(_CHI_NODES)
    s = low + (nodes + 1) * (high - low) / 2
    x = s**2 * degrees_of_freedom
    log_density = special.xlogy(half - 1.0, x) - x / 2.0 - special.gammaln(half) - np.log(2) * degrees_of_freedom / 2.0
    density = np.exp(log_density)
    mass = weights * (density * 2 * s * degrees_of_freedom)
    return s, mass / mass.sum()


@cache
def _normal_rule() -> tuple[Any, Any]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NORMAL_NODES)
    z = nodes * _NORMAL_LIMIT
    mass = weights * np.exp(-(z**2) / 2)
    return z, mass / mass.sum()


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
    from scipy import special

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
    others: list[Arm],
    control: Arm | None,
    order: list[Arm],
    mark: Recorded,
    *,
    alpha: float,
    margin: float = 0.0,
    variance: str = "guarded",
    paired: bool = False,
) -> list[Compared]:
    """Each arm against the baseline that was run, or against the recorded figure or threshold in `mark`.

    `order` are all arms over which the variance is pooled; `variance` is guarded, pooled or welch.
    """
    if control is None:
        compared = [_against_figure(arm, mark, alpha, margin) for arm in others]
    elif paired:
        compared = [_paired(arm, control, alpha, margin) for arm in others]
    else:
        pool = pooled_over(order)
        compared = [_unpaired(arm, control, pool, variance, alpha, margin) for arm in others]
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


def _unpaired(arm: Arm, control: Arm, pool: PooledVariance, variance: str, alpha: float, margin: float) -> Compared:
    difference = arm.mean - control.mean
    worse = tuple(seed for seed, value in sorted(arm.values.items()) if value >= control.mean)
    found = error_of_difference(arm, control, pool, variance)
    if found is None:
        return Compared(arm, difference, "none", worse_seeds=worse)
    return _tested(Compared(arm, difference, found.method, found.error, found.degrees_of_freedom), worse, alpha, margin)


def _paired(arm: Arm, control: Arm, alpha: float, margin: float) -> Compared:
    shared = sorted(arm.values.keys() & control.values.keys())
    if not shared:
        return Compared(arm, arm.mean - control.mean, "none")
    gaps = [arm.values[seed] - control.values[seed] for seed in shared]
    difference = mean_of(gaps)
    worse = tuple(seed for seed, gap in zip(shared, gaps, strict=True) if gap >= 0)
    squares = squared_deviations(gaps)
    if len(gaps) < 2 or squares == 0:
        return Compared(arm, difference, "none", worse_seeds=worse)
    error = math.sqrt(squares / (len(gaps) - 1) / len(gaps))
    return _tested(Compared(arm, difference, "paired", error, len(gaps) - 1), worse, alpha, margin)


def _against_figure(arm: Arm, mark: Recorded, alpha: float, margin: float) -> Compared:
    """By the arm's own spread, with the recorded one's where its SD and n are known."""
    difference = arm.mean - mark.mean
    worse = tuple(seed for seed, value in sorted(arm.values.items()) if value >= mark.mean)
    if arm.sd is None or arm.sd == 0:
        return Compared(arm, difference, "none", worse_seeds=worse)
    parts = [(arm.sd**2 / arm.n, arm.n - 1)]
    if mark.sd is not None and mark.n is not None and mark.n > 1:
        parts.append((mark.sd**2 / mark.n, mark.n - 1))
    found = welch_error(parts)
    assert found is not None
    described = Compared(arm, difference, "descriptive", found.error, found.degrees_of_freedom)
    return _tested(described, worse, alpha, margin)


def _tested(found: Compared, worse: tuple[int, ...], alpha: float, margin: float) -> Compared:
    from scipy import special

    assert found.error is not None
    assert found.degrees_of_freedom is not None
    statistic = -(found.difference + margin) / found.error
    return replace(
        found,
        statistic=statistic,
        p=float(special.stdtr(found.degrees_of_freedom, -statistic)),
        interval=interval(found.difference, found.error, found.degrees_of_freedom, alpha),
        worse_seeds=worse,
    )


# Rank correlation (C. Spearman, American Journal of Psychology 15, 1904).

LEAST_PAIRS = 3


def spearman(first: list[float], second: list[float]) -> float | None:
    """Rank correlation, ties at their mean rank; None for fewer than three pairs, or where one side is all alike."""
    if len(first) < LEAST_PAIRS:
        return None
    a, b = _ranks(first), _ranks(second)
    middle = (len(a) + 1) / 2
    across = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b))
    return across / spread if spread else None


def _ranks(values: list[float]) -> list[float]:
    order = sorted(values)
    return [(bisect_left(order, value) + bisect_right(order, value) + 1) / 2 for value in values]


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
