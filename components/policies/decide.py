"""`decide`: what becomes of a stage's results. A pure function; the same inputs in any order give the same verdict.

The guards that hold for every policy are here; what a stage's arms lead to is the policy's own answer. A policy that
needs more trials first (repeats, a next wave) answers `MoreTrials`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from podium.components.study.design import grouped_stage, waves
from podium.components.study.policy import policy_of
from podium.components.study.schema import Stage, Study
from podium.components.study.trials import wave_trials
from podium.components.study.verdict import Arm, AskedTrial, MoreTrials, StageResults, TrialOutcome, Verdict, mean_of
from podium.components.verdicts.arms import MISSING, arms_of, counts, has_unranked_result, ranked, summaries
from podium.components.verdicts.stats import horizon_of, spearman
from podium.trainer.trial.result import Status

# What a person's amendments make of a verdict: approved, overridden, extended.
#
# The plan (metric, margins, alpha, seeds) is fixed by the study's hash. Whoever changes it afterwards does so on the
# ledger, and what then wins is called exploratory: it was decided with the results in sight. Approval changes nothing
# of the plan, so it leaves the claim as it is.


def amended(stage: Stage, results: StageResults, verdict: Verdict) -> Verdict:
    """The verdict with the stage's amendments applied, and `await` where approval is required and was not given."""
    for amendment in results.amendments:
        if amendment.kind == "extend":
            verdict = _exploratory(verdict, f"extended by the seeds {_list(amendment.seeds)}: {amendment.because}")
    overrides = [each for each in results.amendments if each.kind == "override"]
    if overrides:
        last = overrides[-1]
        ref = next(ref for ref in results.variants if ref.name == last.promote)
        update: dict[str, Any] = {
            "decision": "promote",
            "reason": f"promote {ref.name}, by hand: {last.because}; the policy said: {verdict.reason}",
            "promoted": [ref, *(each for each in verdict.promoted if each.name == _baseline(verdict) != ref.name)],
            "winner": ref.name,
            "not_chosen": {name: why for name, why in _passed_over(verdict, results).items() if name != ref.name},
        }
        return _exploratory(verdict.model_copy(update=update), f"overridden: {last.because}")
    if verdict.decision == "promote" and stage.approval == "required":
        approved = next((each for each in results.amendments if each.kind == "approve"), None)
        if approved is None:
            update = {"decision": "await", "reason": f"await approval to {verdict.reason}"}
        else:
            said = f"approved by {approved.by or 'a person'}"
            update = {"notes": [*verdict.notes, said + (f": {approved.because}" if approved.because else "")]}
        return verdict.model_copy(update=update)
    return verdict


def _exploratory(verdict: Verdict, note: str) -> Verdict:
    claim = "exploratory" if verdict.decision == "promote" else verdict.claim
    notes = [*verdict.notes, f"exploratory: {note}"]
    reason = verdict.reason
    if verdict.proven:
        reason = f"{reason.replace('; proven', '; shown')}, but exploratory: {note}"
    return verdict.model_copy(update={"proven": False, "claim": claim, "notes": notes, "reason": reason})


def _baseline(verdict: Verdict) -> str:
    return str(verdict.parameters["baseline"])


def _passed_over(verdict: Verdict, results: StageResults) -> dict[str, str]:
    chosen = {ref.name: "the policy's choice was overridden by hand" for ref in verdict.promoted}
    known = {ref.name: verdict.not_chosen.get(ref.name, "") for ref in results.variants}
    return {name: chosen.get(name) or why for name, why in known.items() if chosen.get(name) or why}


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


# The next wave of a stage whose trials are given by groups, with what it takes from those that are over.
#
# The best value of an axis in a group is the one with the least mean over its trials: of the restricted time to the
# target, a miss counting as the time it took; where nobody reached it, to the next looser loss that was timed; where
# nobody reached any, of the validation loss. No hypothesis is tested. Limits: meant for groups that try every value
# beside the same others, as pairs; one trial each is a hint.


def next_wave(study: Study, results: StageResults) -> MoreTrials | None:
    """The trials of the stage's next wave; None where all have been asked for, or the stage has no groups."""
    if results.stage != grouped_stage(study):
        return None
    groups = study.stages[results.stage].groups
    order = waves(groups)
    asked = [each for each in results.asked if each.kind == "wave"]
    number = len(asked) + 1
    if number >= len(order):
        return None
    before = [*wave_trials(study, results.stage, 0, {}, []), *(trial for each in asked for trial in each.trials)]
    needed = sorted({(source, axis) for name in order[number] for axis, source in groups[name].takes.items()})
    taken: dict[str, dict[str, Any]] = {}
    numbers: dict[str, Any] = {}
    told = []
    for source, axis in needed:
        taken.setdefault(source, {})[axis], figures, measure = _best(study, results, before, source, axis)
        numbers[f"{axis} of {source}"] = {"by": measure, **figures}
        shown = ", ".join(f"{value} {figure:.4g}" for value, figure in figures.items())
        told.append(f"{axis} {taken[source][axis]} from group {source} ({measure}: {shown})")
    reason = f"wave {number + 1} of {len(order)}: groups {', '.join(order[number])}" + (
        f", with {'; '.join(told)}" if told else ""
    )
    trials = wave_trials(study, results.stage, number, taken, before)
    return MoreTrials(kind="wave", reason=reason, trials=trials, numbers=numbers)


def _best(
    study: Study, results: StageResults, before: Sequence[AskedTrial], source: str, axis: str
) -> tuple[Any, dict[str, float], str]:
    """The best value, every value's figure, and what that measures."""
    places = {(each.variant.name, each.seed): each.variant.axis_values[axis] for each in before if each.group == source}
    by_value: dict[str, list[TrialOutcome]] = {}
    values: dict[str, Any] = {}
    for value in study.axes[axis].values:
        own = [o for o in results.outcomes if (o.variant, o.seed) in places and places[o.variant, o.seed] == value]
        if own:
            values[str(value)], by_value[str(value)] = value, own
    for loss in _losses(study, results.stage):
        if any(_seconds(outcome, loss) is not None for own in by_value.values() for outcome in own):
            horizon = horizon_of([outcome for own in by_value.values() for outcome in own])
            figures = {name: mean_of([_restricted(o, loss, horizon) for o in own]) for name, own in by_value.items()}
            return _least(values, figures), figures, f"mean seconds to {loss:g}, misses up to {horizon:.1f}"
    known = {name: [o.final_val_loss for o in own if o.final_val_loss is not None] for name, own in by_value.items()}
    figures = {name: mean_of(losses) for name, losses in known.items() if losses}
    if figures:
        return _least(values, figures), figures, "mean final validation loss"
    first = next(value for value in study.axes[axis].values if value in places.values())
    return first, {}, "nothing measured"


def _losses(study: Study, stage: str) -> list[float]:
    """The stage's target, then the looser ones."""
    rule = study.stages[stage].stop.target
    if rule is None:
        return []
    return [rule.loss, *sorted(loss for loss in rule.also if loss > rule.loss)]


def _seconds(outcome: TrialOutcome, loss: float) -> float | None:
    return outcome.targets.get(f"{loss:g}")


def _restricted(outcome: TrialOutcome, loss: float, horizon: float) -> float:
    """The time, or for a miss the time up to which it was seen; one that died would never have arrived."""
    seconds = _seconds(outcome, loss)
    return horizon if seconds is None else seconds


def _least(values: Mapping[str, Any], figures: Mapping[str, float]) -> Any:
    return values[min(figures, key=lambda name: figures[name])]


# How well the stage before ranked the arms that this stage ranks: what a cheap stage's ranking is worth.
#
# Spearman's rank correlation of the two stages' means over the arms that both ranked (C. Spearman, American Journal of
# Psychology 15, 1904). Limits: the arms were promoted for their rank, so their range is restricted and the correlation
# is lower than it would be over all; with few arms it is next to noise, and with fewer than three it is not given.


def rank_correlation(verdict: Verdict, results: StageResults) -> dict[str, Any] | None:
    """Of this verdict's ranking with that of the stage before; None where there was none."""
    if not results.previous:
        return None
    before = results.previous[-1]
    first = {row.variant: row.mean for row in before.ranking if row.rank is not None and row.mean is not None}
    second = {row.variant: row.mean for row in verdict.ranking if row.rank is not None and row.mean is not None}
    shared = sorted(first.keys() & second.keys())
    rho = spearman([first[name] for name in shared], [second[name] for name in shared])
    return {"stage": before.stage, "arms": len(shared), "spearman": rho}


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
    answer = next_wave(study, results) or policy_of(study, results.stage).decide(study, results, arms)
    return answer if isinstance(answer, MoreTrials) else _finish(study, stage, results, arms, answer)


def _guard(study: Study, stage: Stage, results: StageResults, arms: list[Arm]) -> str:
    """Why no verdict is possible; empty if one is."""
    policy = policy_of(study, results.stage)
    control = next((arm for arm in arms if arm.is_baseline), None)
    needs_baseline = policy.needs_baseline and results.stage not in study.baseline.recorded
    if needs_baseline and control is not None and control.why_not and not has_unranked_result(policy, control):
        return f"no baseline: {control.name} has no figure to compare with ({control.why_not})"
    if needs_baseline and control is None and policy.missing_baseline(study):
        return f"no baseline: {policy.missing_baseline(study)}"
    broken = sum(status == Status.BROKEN for arm in arms for status in arm.statuses.values())
    if broken > stage.max_broken:
        return f"not enough results: {broken} broken {_trials(broken)}, the stage allows {stage.max_broken}"
    # a miss has no value, but it says something
    able = [arm for arm in arms if arm.n or not _says_nothing(arm)] if policy.by_time else ranked(arms)
    able += [arm for arm in arms if arm not in able and has_unranked_result(policy, arm)]
    if not able and not (policy.decides_unpaid and _unpaid(arms)):
        return f"not enough results: none of {len(arms)} arms has a value for {stage.min_seeds} seeds"
    names = {arm.name for arm in able}
    tokenizers = {outcome.tokenizer for outcome in results.outcomes if outcome.variant in names}
    devices = sorted({o.device for o in results.outcomes if o.variant in names and o.device is not None})
    if policy.by_time and len(devices) > 1:
        return f"not comparable: times on {len(devices)} types of device ({', '.join(devices)})"
    if policy.ranks and policy.metric != "final_bits_per_byte" and len(tokenizers) > 1:
        return (
            f"not comparable: {policy.metric} is a loss a token, and the arms have {len(tokenizers)} "
            f"different tokenizers or texts; rank by final_bits_per_byte"
        )
    return ""


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
