"""A stage's times to a target, by arm: statistics, order, and the tables that verdicts show of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.verdicts.ranking import Arm, summaries
from podium.components.verdicts.survival import Time, Times, horizon_of, summarise, time_of
from podium.components.verdicts.verdict import ArmSummary, FallbackTaken, TrialOutcome


@dataclass(frozen=True)
class Race:
    """The stage's times as they rank."""

    target: float | None
    """The loss to which the times are; None where the stage declares none."""
    by: str
    """The statistic that ranks."""
    times: dict[str, Times]
    """Of those arms that have `min_seeds` seeds which say something."""
    horizon: float
    """Seconds."""
    order: tuple[Arm, ...]
    """The arms that have times, fastest first."""
    outcomes: tuple[TrialOutcome, ...]
    """One a variant and seed, its time to `target` as its time."""
    fallbacks: tuple[FallbackTaken, ...] = ()

    @property
    def reached(self) -> list[Arm]:
        """The arms of which a seed arrived, fastest first."""
        return [arm for arm in self.order if self.times[arm.name].reached]

    @property
    def seconds(self) -> list[float]:
        """The times of all trials that arrived, shortest first."""
        known = [outcome.time_to_target_seconds for outcome in self.outcomes]
        return sorted(each for each in known if each is not None)

    def numbers(self) -> dict[str, Any]:
        """The statistics of every arm, for the verdict."""
        plain = {
            name: {
                "reached": own.reached,
                "seeds": own.seeds,
                "restricted_mean": own.restricted_mean,
                "par2": own.par2,
                "median": own.median,
            }
            for name, own in sorted(self.times.items())
        }
        return {"target_loss": self.target, "by": self.by, "horizon_seconds": self.horizon, "times": plain}


def race_of(
    arms: Sequence[Arm],
    outcomes: Sequence[TrialOutcome],
    *,
    min_seeds: int,
    by: str,
    horizon: float | None,
    target: float | None,
) -> Race:
    """The race over these outcomes; `horizon` is by default the longest time that any trial trained."""
    horizon = horizon or horizon_of(outcomes)
    by_arm: dict[str, list[Time]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.variant, outcome.seed)):
        time = time_of(outcome, horizon)
        if time is not None:
            by_arm.setdefault(outcome.variant, []).append(time)
    times = {
        arm.name: summarise(by_arm[arm.name], horizon) for arm in arms if len(by_arm.get(arm.name, ())) >= min_seeds
    }

    def key(arm: Arm) -> tuple[Any, ...]:
        own = times[arm.name]
        # of equal ones who reached the target more often, then by PAR-2
        return own.by(by), -own.reached / own.seeds, own.par2, not arm.is_baseline, arm.name

    order = tuple(sorted((arm for arm in arms if arm.name in times), key=key))
    return Race(target, by, times, horizon, order, tuple(outcomes))


def time_table(race: Race, arms: Sequence[Arm], order: Sequence[Arm]) -> list[ArmSummary]:
    """The verdict's table: the statistic that ranks as the mean, each seed's time, None for a miss."""
    seconds = {(o.variant, o.seed): o.time_to_target_seconds for o in race.outcomes}
    table = []
    for row in summaries(arms, order):
        own = race.times.get(row.variant)
        figure = own.by(race.by) if own is not None else math.inf
        table.append(
            row.model_copy(
                update={
                    "n": own.seeds if own is not None else 0,
                    "mean": figure if math.isfinite(figure) else None,
                    "sd": None,
                    "values": {seed: seconds.get((row.variant, int(seed))) for seed in row.statuses},
                    "why": "" if own is not None else row.why or "no seed says anything of its time",
                }
            )
        )
    return table
