"""What is done where a stage of times does not go as planned: a looser target, repeats, a tighter target.

    nobody reached the target       rank by the time to `relax`, which the trials have timed too
    times vary from seed to seed    the leaders again, until each has `runs`; then the median ranks
    times are all alike             the stopped trials go on from their checkpoints to `tighten.target`

In this order, each once; the numbers that decided are in the answer, so on the ledger. How much times vary is the
coefficient of variation SD / mean of an arm's replicates, pooled over arms by degrees of freedom: a root mean square.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from podium.components.study.promotion import FastestToTarget, RefineRegion, Repeats, Tightening
from podium.components.study.schema import Study
from podium.components.verdicts.ranking import Arm
from podium.components.verdicts.times import Race, race_of
from podium.components.verdicts.verdict import AskedTrial, FallbackTaken, MoreTrials, StageResults, TrialOutcome


def race(
    study: Study, results: StageResults, arms: Sequence[Arm], policy: FastestToTarget | RefineRegion
) -> Race | MoreTrials:
    """The stage's times as they rank, after the fallbacks that were taken; or the trials that one needs first."""
    stage = study.stages[results.stage]
    declared = None if stage.stop.target is None else stage.stop.target.loss

    def run(outcomes: Sequence[TrialOutcome], by: str, target: float | None) -> Race:
        return race_of(arms, outcomes, min_seeds=stage.min_seeds, by=by, horizon=policy.horizon_seconds, target=target)

    tightened = next((each for each in results.asked if each.kind == "fallback"), None)
    target = declared if tightened is None else tightened.trials[0].target
    outcomes = _latest(results.outcomes, target if tightened is not None else None)
    found = run(outcomes, policy.by, target)
    if tightened is not None:
        taken = FallbackTaken(name="tighten", reason=tightened.reason, numbers=tightened.numbers)
        found = replace(found, fallbacks=(taken,))
    elif not found.reached and policy.fallbacks.relax is not None:
        relaxed = run(_timed_to(outcomes, policy.fallbacks.relax), policy.by, policy.fallbacks.relax)
        found = _relaxed(found, relaxed) if relaxed.reached else found
    rule = policy.fallbacks.repeat
    if rule is not None and found.reached:
        asked = [each for each in results.asked if each.kind == "repeat" and each.trials]
        numbers = asked[0].numbers if asked else variation(found.outcomes)
        if asked or (numbers["cv"] is not None and numbers["cv"] > rule.above_cv):
            by_median = replace(run(found.outcomes, "median", found.target), fallbacks=found.fallbacks)
            short = [] if tightened is not None else _short(results, by_median, rule)
            reason = (
                f"times vary by {numbers['cv']:.1%} over replicates ({numbers['degrees_of_freedom']} degrees of "
                f"freedom), more than {rule.above_cv:.0%}: the {rule.leaders} fastest get {rule.runs} runs each, and "
                f"the median ranks"
            )
            if short:
                return MoreTrials(
                    kind="repeat", reason=reason, trials=short, numbers=numbers | {"limit": rule.above_cv}
                )
            repeated = FallbackTaken(name="repeat", reason=reason, numbers=numbers | {"limit": rule.above_cv})
            found = replace(by_median, fallbacks=(*found.fallbacks, repeated))
    alike = policy.fallbacks.tighten
    if alike is not None and not any(taken.name in ("relax", "tighten") for taken in found.fallbacks):
        tighter = _tightening(results, found, alike)
        if tighter is not None:
            return tighter
    return found


def variation(outcomes: Iterable[TrialOutcome]) -> dict[str, Any]:
    """`cv` of the times over replicates, None where no variant has two, and how many degrees of freedom it has."""
    times: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.time_to_target_seconds is not None:
            times.setdefault(outcome.variant, []).append(outcome.time_to_target_seconds)
    squares, degrees = [], 0
    for own in times.values():
        if len(own) > 1:
            squares.append((len(own) - 1) * (statistics.stdev(own) / statistics.fmean(own)) ** 2)
            degrees += len(own) - 1
    cv = math.sqrt(math.fsum(squares) / degrees) if degrees else None
    return {"cv": cv, "degrees_of_freedom": degrees}


def _latest(outcomes: Iterable[TrialOutcome], target: float | None) -> list[TrialOutcome]:
    """One outcome a variant and seed: that of the trial which went on, where there is one that ran.

    With a `target` those that did not go on are timed to it as well: most have not reached it.
    """
    found: dict[tuple[str, int], TrialOutcome] = {}
    for outcome in outcomes:
        if outcome.fallback is None:
            timed = [outcome] if target is None else _timed_to([outcome], target)
            found.setdefault((outcome.variant, outcome.seed), timed[0])
    for outcome in outcomes:
        if outcome.fallback is not None and outcome.training_seconds is not None:
            found[outcome.variant, outcome.seed] = outcome
    return [found[key] for key in sorted(found)]


def _timed_to(outcomes: Iterable[TrialOutcome], target: float) -> list[TrialOutcome]:
    key = f"{target:g}"
    return [each.model_copy(update={"time_to_target_seconds": each.targets.get(key)}) for each in outcomes]


def _relaxed(declared: Race, relaxed: Race) -> Race:
    numbers = {
        "target": declared.target,
        "reached": 0,
        "trials": len(declared.outcomes),
        "horizon_seconds": declared.horizon,
        "relaxed_target": relaxed.target,
        "reached_relaxed": len(relaxed.seconds),
    }
    reason = (
        f"none of {numbers['trials']} trials reached {declared.target:g} within {declared.horizon:.1f} s: ranked by "
        f"the time to {relaxed.target:g}, which {numbers['reached_relaxed']} reached"
    )
    return replace(relaxed, fallbacks=(FallbackTaken(name="relax", reason=reason, numbers=numbers),))


def _short(results: StageResults, race: Race, rule: Repeats) -> list[AskedTrial]:
    """The runs that the leaders lack."""
    found = []
    for arm in race.reached[: rule.leaders]:
        used = {outcome.seed for outcome in results.outcomes if outcome.variant == arm.name}
        following = range(max(used) + 1, max(used) + 1 + rule.runs - len(used))
        found += [AskedTrial(variant=arm.variant, seed=seed) for seed in following]
    return found


def _tightening(results: StageResults, race: Race, rule: Tightening) -> MoreTrials | None:
    seconds = race.seconds
    if len(race.reached) < 2:
        return None
    middle = statistics.median(seconds)
    spread = (seconds[-1] - seconds[0]) / middle
    if spread >= rule.below_spread:
        return None
    variants = {ref.name: ref for ref in results.variants}
    name = f"to-{rule.target:g}"
    trials = [
        AskedTrial(variant=variants[each.variant], seed=each.seed, fallback=name, target=rule.target)
        for each in race.outcomes
        if each.time_to_target_seconds is not None
    ]
    numbers = {
        "spread": spread,
        "limit": rule.below_spread,
        "shortest_seconds": seconds[0],
        "median_seconds": middle,
        "longest_seconds": seconds[-1],
        "trials": len(trials),
        "target": race.target,
        "tighter_target": rule.target,
    }
    reason = (
        f"the times of {len(trials)} trials are all alike: they spread over {spread:.1%} of their median "
        f"{middle:.1f} s, less than {rule.below_spread:.0%}; all go on from their checkpoints to {rule.target:g}"
    )
    return MoreTrials(kind="fallback", reason=reason, trials=trials, numbers=numbers)
