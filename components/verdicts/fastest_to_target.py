"""The least time to the target, misses censored.

No hypothesis is tested: a ranking by the restricted mean, PAR-2 or the median over seeds (`survival.py`), all three
shown. Limits: with one seed a rank is a hint; times compare only on one type of device with the device to itself, so a
stage with several is refused; what nobody reached is not ranked.
"""

from __future__ import annotations

import math

from podium.components.study.promotion import FastestToTarget
from podium.components.study.schema import Study
from podium.components.verdicts.claims import reuses_selection_seeds
from podium.components.verdicts.ranking import Arm
from podium.components.verdicts.time_fallbacks import race
from podium.components.verdicts.times import Race, time_table
from podium.components.verdicts.verdict import MoreTrials, StageResults, Verdict


def fastest_to_target(study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
    """Promote the `top` fastest; stop where nobody reached the target."""
    policy = study.stages[results.stage].promotion
    assert isinstance(policy, FastestToTarget)
    run = race(study, results, arms, policy)
    if isinstance(run, MoreTrials):
        return run
    chosen = run.reached[: policy.top]
    names = {arm.name for arm in chosen}
    if not chosen:
        reason = f"stop: nobody reached the target within {run.horizon:.1f} s ({len(run.times)} arms)"
    else:
        first = run.times[chosen[0].name]
        target = "" if run.target is None else f" {run.target:g}"
        reason = (
            f"promote {', '.join(arm.name for arm in chosen)}: {chosen[0].name} has the least "
            f"{run.by.replace('_', ' ')} time to the target{target}, {first.by(run.by):.1f} s, "
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
        ranking=time_table(run, arms, run.order),
        test={"name": "none", "why": "a ranking of times proves nothing", **run.numbers()},
        not_chosen={arm.name: _why(arm, run, chosen) for arm in arms if arm.name not in names},
        fallbacks=list(run.fallbacks),
        notes=[f"{taken.name}: {taken.reason}" for taken in run.fallbacks],
    )


def _why(arm: Arm, run: Race, chosen: list[Arm]) -> str:
    own = run.times.get(arm.name)
    if own is None:
        return arm.why_not or "no seed says anything of its time"
    if not own.reached:
        return f"none of {own.seeds} seeds reached the target"
    figure = own.by(run.by)
    said = f"{own.reached} of {own.seeds} seeds reached the target"
    if not chosen or math.isinf(figure):
        return said
    return f"{figure - run.times[chosen[0].name].by(run.by):.1f} s behind {chosen[0].name}; {said}"
