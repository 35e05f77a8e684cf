"""Times to a target with misses: a miss is a censored value, at least the time it took, never dropped and no number.

Restricted mean: the area under Kaplan and Meier's curve up to a horizon (E. L. Kaplan, P. Meier, JASA 53, 1958;
P. Royston, M. K. B. Parmar, "Restricted mean survival time", BMC Medical Research Methodology 13, 2013). PAR-2: a miss
counts as twice the horizon (the satisfiability competitions' score). Median: where the curve falls to a half; unknown
where fewer than half of the seeds arrived. A run that was killed, diverged, collapsed or did not fit will never arrive:
its time is the horizon. Limits: with few seeds each is rough; a miss that was censored before the horizon is taken to
survive until it, so the restricted mean is the largest that the data allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from podium.components.verdicts.ranking import FAILED
from podium.components.verdicts.verdict import TrialOutcome
from podium.trainer.result import Status


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
