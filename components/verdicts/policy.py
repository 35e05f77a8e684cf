"""`decide`: what becomes of a stage's results. A pure function; the same inputs in any order give the same verdict.

The guards that hold for every policy are here; each policy is a function of the arms in a module of its own, entered in
`_POLICIES`. A policy that needs more trials first (repeats, a next wave) answers `MoreTrials`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podium.components.study.schema import Stage, Study
from podium.components.verdicts.amendments import amended
from podium.components.verdicts.beats_baseline import beats_baseline
from podium.components.verdicts.best_mean import best_mean
from podium.components.verdicts.fastest_to_target import fastest_to_target
from podium.components.verdicts.if_affordable import collapsed, if_affordable, said_of
from podium.components.verdicts.next_wave import next_wave
from podium.components.verdicts.rank_correlation import rank_correlation
from podium.components.verdicts.ranking import MISSING, Arm, arms_of, counts, ranked, summaries
from podium.components.verdicts.reaches_target import reaches_target
from podium.components.verdicts.refine_region import refine_region
from podium.components.verdicts.top_per_axis import top_per_axis
from podium.components.verdicts.verdict import MoreTrials, StageResults, Verdict
from podium.components.verdicts.within_margin import within_margin
from podium.trainer.result import Status

Decision = Callable[[Study, StageResults, list[Arm]], Verdict | MoreTrials]


def decide(study: Study, results: StageResults) -> Verdict | MoreTrials:
    """The verdict over a stage as it stands, by the policy that the study declares, or the trials to run first.

    Whatever the policy: a stage with more broken trials than `max_broken`, or in which no arm has `min_seeds` values,
    gives `stop: not enough results`; one whose baseline has no figure gives `stop: no baseline`; losses a token of
    different tokenizers are not compared; `approval: required` turns `promote` into `await`.
    """
    stage = study.stages[results.stage]
    arms = arms_of(results, baseline=study.baseline.variant, min_seeds=stage.min_seeds)
    refused = _guard(study, stage, results, arms)
    if refused:
        return _finish(study, stage, results, arms, _stop(stage, results, arms, refused))
    answer = next_wave(study, results) or _POLICIES[stage.promotion.policy](study, results, arms)
    return answer if isinstance(answer, MoreTrials) else _finish(study, stage, results, arms, answer)


def _guard(study: Study, stage: Stage, results: StageResults, arms: list[Arm]) -> str:
    """Why no verdict is possible; empty if one is."""
    policy = stage.promotion.policy
    control = next((arm for arm in arms if arm.is_baseline), None)
    needs_baseline = policy not in _WITHOUT_BASELINE and results.stage not in study.baseline.recorded
    if needs_baseline and control is not None and control.why_not and not goes_on_unranked(policy, control):
        return f"no baseline: {control.name} has no figure to compare with ({control.why_not})"
    if needs_baseline and control is None and policy == "top_per_axis":
        return f"no baseline: {study.baseline.variant}, a value of every axis, takes no part in the stage"
    broken = sum(status == Status.BROKEN for arm in arms for status in arm.statuses.values())
    if broken > stage.max_broken:
        return f"not enough results: {broken} broken {_trials(broken)}, the stage allows {stage.max_broken}"
    by_time = stage.promotion.metric == "time_to_target_seconds"
    # a miss has no value, but it says something
    able = [arm for arm in arms if arm.n or not _says_nothing(arm)] if by_time else ranked(arms)
    able += [arm for arm in arms if arm not in able and goes_on_unranked(policy, arm)]
    if not able and not (policy == "if_affordable" and _unpaid(arms)):
        return f"not enough results: none of {len(arms)} arms has a value for {stage.min_seeds} seeds"
    names = {arm.name for arm in able}
    tokenizers = {outcome.tokenizer for outcome in results.outcomes if outcome.variant in names}
    devices = sorted({o.device for o in results.outcomes if o.variant in names and o.device is not None})
    if by_time and len(devices) > 1:
        return f"not comparable: times on {len(devices)} types of device ({', '.join(devices)})"
    if policy not in _UNRANKED and stage.promotion.metric != "final_bits_per_byte" and len(tokenizers) > 1:
        return (
            f"not comparable: {stage.promotion.metric} is a loss a token, and the arms have {len(tokenizers)} "
            f"different tokenizers or texts; rank by final_bits_per_byte"
        )
    return ""


def goes_on_unranked(policy: str, arm: Arm) -> bool:
    """Whether the policy lets an arm go on that can't be ranked."""
    return policy in _UNRANKED and arm in collapsed([arm])


def _says_nothing(arm: Arm) -> bool:
    return all(status in (MISSING, Status.BROKEN, Status.NOT_RUN_BUDGET) for status in arm.statuses.values())


def _unpaid(arms: list[Arm]) -> bool:
    statuses = [status for arm in arms for status in arm.statuses.values()]
    return bool(statuses) and all(status == Status.NOT_RUN_BUDGET for status in statuses)


def _stop(stage: Stage, results: StageResults, arms: list[Arm], reason: str) -> Verdict:
    order = ranked(arms)
    return Verdict(
        stage=results.stage,
        policy=stage.promotion.policy,
        parameters={},
        decision="stop",
        reason=f"stop: {reason}",
        metric=stage.promotion.metric,
        ranking=summaries(arms, order),
        not_chosen={arm.name: arm.why_not or "the stage was stopped" for arm in arms},
    )


def _always(study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
    """Everything that has a figure goes on, and what collapsed; nothing rests on the order of the table."""
    order = ranked(arms)
    others = collapsed(arms)
    return Verdict(
        stage=results.stage,
        policy="always",
        parameters={},
        decision="promote",
        reason=f"promote: all {len(order) + len(others)} that have a result go on" + said_of(others),
        promoted=[arm.variant for arm in [*order, *others]],
        metric=study.stages[results.stage].promotion.metric,
        ranking=summaries(arms, order),
        not_chosen={arm.name: arm.why_not for arm in arms if arm.why_not},
    )


def _finish(study: Study, stage: Stage, results: StageResults, arms: list[Arm], verdict: Verdict) -> Verdict:
    """Add what every verdict states: the rule as declared, the trials by status, the inputs; and ask for approval."""
    update: dict[str, Any] = {
        "parameters": {
            **stage.promotion.model_dump(mode="json"),
            "min_seeds": stage.min_seeds,
            "max_broken": stage.max_broken,
            "proof": stage.proof,
            "baseline": study.baseline.variant,
        },
        "counts": counts(arms),
        "rank_correlation": rank_correlation(verdict, results),
        "results": results,
    }
    return amended(stage, results, verdict.model_copy(update=update))


def _trials(n: int) -> str:
    return "trial" if n == 1 else "trials"


_UNRANKED = ("always", "if_affordable")
"""Policies that compare nothing."""
_WITHOUT_BASELINE = ("if_affordable", "fastest_to_target", "refine_region")
"""Policies that decide without a baseline."""
_POLICIES: dict[str, Decision] = {
    "always": _always,
    "top_per_axis": top_per_axis,
    "best_mean": best_mean,
    "within_margin": within_margin,
    "beats_baseline": beats_baseline,
    "reaches_target": reaches_target,
    "if_affordable": if_affordable,
    "fastest_to_target": fastest_to_target,
    "refine_region": refine_region,
}
