"""The least time to the target, misses censored.

No hypothesis is tested: a ranking by the restricted mean, PAR-2 or the median over seeds (`survival.py`), all three
shown. Limits: with one seed a rank is a hint; times compare only on one type of device with the device to itself, so a
stage with several is refused; what nobody reached is not ranked.
"""

from __future__ import annotations

import math
from typing import Any

from podium.components.study.promotion import FastestToTarget, RefineRegion
from podium.components.study.schema import Study
from podium.components.verdicts.claims import reuses_selection_seeds
from podium.components.verdicts.ranking import Arm, summaries
from podium.components.verdicts.survival import Time, Times, horizon_of, summarise, time_of
from podium.components.verdicts.verdict import ArmSummary, StageResults, Verdict


def fastest_to_target(study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
    """Promote the `top` fastest; stop where nobody reached the target."""
    policy = study.stages[results.stage].promotion
    assert isinstance(policy, FastestToTarget)
    times, horizon = arm_times(study, results, arms, policy)
    order = order_by_time(arms, times, policy.by)
    chosen = [arm for arm in order if times[arm.name].reached][: policy.top]
    names = {arm.name for arm in chosen}
    test = {"name": "none", "why": "a ranking of times proves nothing", **plain_times(times, horizon, policy.by)}
    if not chosen:
        reason = f"stop: nobody reached the target within {horizon:.1f} s ({len(times)} arms)"
    else:
        first = times[chosen[0].name]
        reason = (
            f"promote {', '.join(arm.name for arm in chosen)}: {chosen[0].name} has the least "
            f"{policy.by.replace('_', ' ')} time to the target, {first.by(policy.by):.1f} s, "
            f"{first.reached} of {first.seeds} seeds reached it"
        )
    return Verdict(
        stage=results.stage,
        policy=policy.policy,
        parameters={},
        decision="promote" if chosen else "stop",
        reason=reason,
        promoted=[arm.variant for arm in chosen],
        winner=chosen[0].name if chosen else None,
        claim="none" if not chosen else "exploratory" if reuses_selection_seeds(results) else "candidate",
        metric=policy.metric,
        ranking=time_table(results, arms, order, times, policy.by),
        test=test,
        not_chosen={arm.name: _why(arm, times, policy.by, chosen) for arm in arms if arm.name not in names},
    )


def arm_times(
    study: Study, results: StageResults, arms: list[Arm], policy: FastestToTarget | RefineRegion
) -> tuple[dict[str, Times], float]:
    """Each arm's times, of those with `min_seeds` seeds that say something; and the horizon in seconds."""
    horizon = policy.horizon_seconds or horizon_of(results.outcomes)
    by_arm: dict[str, list[Time]] = {}
    for outcome in sorted(results.outcomes, key=lambda outcome: (outcome.variant, outcome.seed)):
        time = time_of(outcome, horizon)
        if time is not None:
            by_arm.setdefault(outcome.variant, []).append(time)
    found = {}
    for arm in arms:
        known = by_arm.get(arm.name, [])
        if len(known) >= study.stages[results.stage].min_seeds:
            found[arm.name] = summarise(known, horizon)
    return found, horizon


def order_by_time(arms: list[Arm], times: dict[str, Times], by: str) -> list[Arm]:
    """The arms that have times, fastest first; of equal ones who reached the target more often, then by PAR-2."""

    def key(arm: Arm) -> tuple[Any, ...]:
        own = times[arm.name]
        return own.by(by), -own.reached / own.seeds, own.par2, not arm.is_baseline, arm.name

    return sorted((arm for arm in arms if arm.name in times), key=key)


def time_table(
    results: StageResults, arms: list[Arm], order: list[Arm], times: dict[str, Times], by: str
) -> list[ArmSummary]:
    """The verdict's table: the statistic that ranks as the mean, each seed's time, None for a miss."""
    seconds = {(o.variant, o.seed): o.time_to_target_seconds for o in results.outcomes}
    table = []
    for row in summaries(arms, order):
        own = times.get(row.variant)
        figure = own.by(by) if own is not None else math.inf
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


def plain_times(times: dict[str, Times], horizon: float, by: str) -> dict[str, Any]:
    """The statistics of every arm, for the verdict."""
    plain = {
        name: {
            "reached": own.reached,
            "seeds": own.seeds,
            "restricted_mean": own.restricted_mean,
            "par2": own.par2,
            "median": own.median,
        }
        for name, own in sorted(times.items())
    }
    return {"by": by, "horizon_seconds": horizon, "times": plain}


def _why(arm: Arm, times: dict[str, Times], by: str, chosen: list[Arm]) -> str:
    own = times.get(arm.name)
    if own is None:
        return arm.why_not or "no seed says anything of its time"
    if not own.reached:
        return f"none of {own.seeds} seeds reached the target"
    figure = own.by(by)
    said = f"{own.reached} of {own.seeds} seeds reached the target"
    if not chosen or math.isinf(figure):
        return said
    return f"{figure - times[chosen[0].name].by(by):.1f} s behind {chosen[0].name}; {said}"
