"""Everything within δ of the leader goes on, capped by count and by money.

No hypothesis is rejected: this is selection by indifference. A variant that is dropped is one whose mean lies further
behind the leader than `margin`, widened by what the seeds can't tell apart if `alpha` is declared: with that the best
variant is among those kept with a probability of at least 1 - alpha for each (Gupta's subset selection, "On some
multiple decision rules", Technometrics 7, 1965, one pair at a time). Estimator: means over seeds, variance pooled over
all arms. Limits: the leader of k looks better than it is, so it proves nothing, and the next stage uses fresh seeds;
a rank at a fraction of the budget is a hint (Spearman 0.4 to 0.9), which is why more than one should go on.
"""

from __future__ import annotations

import math

from scipy import stats

from podium.components.policies.schema import WithinMargin
from podium.components.study.cost import payable, total, usd_to_end
from podium.components.study.schema import Study
from podium.components.verdicts.arms import Arm, Pooled, pooled, ranked, summaries, with_baseline
from podium.components.verdicts.verdict import StageResults, VariantRef, Verdict
from podium.trainer.trial.units import format_usd


def within_margin(study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
    """Promote the variants within δ of the leader: those within the margin first, the least spread at their head.

    A leading baseline is no candidate but sets the mark; where no variant is near it, the verdict is a stop.
    """
    policy = study.stages[results.stage].promotion
    assert isinstance(policy, WithinMargin)
    order = ranked(arms)
    leader, noise = order[0], _noise(policy, order)
    quantile = _quantile(policy, noise)
    limits = {arm.name: policy.margin + _widening(quantile, noise, arm, leader) for arm in order}
    near = [arm for arm in order if not arm.is_baseline and arm.mean - leader.mean <= limits[arm.name]]
    near, note = _by_spread(near, leader, policy)
    paid = _payable(study, results, policy, len(near))
    chosen = near[: min(policy.most, paid)]
    names = {arm.name for arm in chosen}
    places = {arm.name: place for place, arm in enumerate(near)}
    notes = [note] if note else []
    if paid < min(policy.most, len(near)):
        notes.append(f"{paid} of {min(policy.most, len(near))} can be paid to the end of the study")
    verdict = Verdict(
        stage=results.stage,
        policy=policy.policy,
        parameters={},
        decision="promote" if chosen else "stop",
        reason="",
        promoted=_promoted(study, results, policy, chosen),
        winner=chosen[0].name if chosen else None,
        claim="candidate" if chosen else "none",
        metric=policy.metric,
        ranking=summaries(arms, order),
        test={
            "name": "none",
            "why": "a selection by indifference proves nothing",
            "leader": leader.name,
            "leader_mean": leader.mean,
            "pooled_sd": noise.sd if noise else None,
            "degrees_of_freedom": noise.degrees_of_freedom if noise else 0,
            "limits": limits,
        },
        not_chosen={arm.name: _why(arm, leader, limits, places, policy, paid) for arm in arms if arm.name not in names},
        notes=notes,
    )
    return verdict.model_copy(update={"reason": _sentence(study, results, policy, verdict, order, near, limits)})


def _payable(study: Study, results: StageResults, policy: WithinMargin, most: int) -> int:
    """How many variants the next stage can be paid for, with the baseline if it has to be run, and those after it."""
    stages = list(study.stages)
    following = stages[stages.index(results.stage) + 1 :][:1]
    if not following:
        return most
    joins = policy.keep_baseline and bool(with_baseline(study, results, []))
    return payable(study, following[0], results.spent_usd, most, baseline=joins)


def _promoted(study: Study, results: StageResults, policy: WithinMargin, chosen: list[Arm]) -> list[VariantRef]:
    refs = [arm.variant for arm in chosen]
    return with_baseline(study, results, refs) if refs and policy.keep_baseline else refs


def _noise(policy: WithinMargin, order: list[Arm]) -> Pooled | None:
    return Pooled(policy.sigma, 0) if policy.sigma is not None else pooled(order)


def _quantile(policy: WithinMargin, noise: Pooled | None) -> float:
    if policy.alpha is None or noise is None:
        return 0.0
    if policy.sigma is not None:
        return float(stats.norm.isf(policy.alpha))
    return float(stats.t.isf(policy.alpha, noise.degrees_of_freedom))


def _widening(quantile: float, noise: Pooled | None, arm: Arm, leader: Arm) -> float:
    if noise is None or arm is leader:
        return 0.0
    return quantile * noise.sd * math.sqrt(1 / arm.n + 1 / leader.n)


def _by_spread(near: list[Arm], leader: Arm, policy: WithinMargin) -> tuple[list[Arm], str]:
    """The same arms with those within the margin ordered by spread, and a sentence if that changed the first."""
    tied = [arm for arm in near if arm.mean - leader.mean <= policy.margin]
    if policy.tie_break == "mean" or len(tied) < 2 or any(arm.sd is None for arm in tied):
        return near, ""
    tied.sort(key=lambda arm: (arm.sd, arm.mean, arm.name))
    first_names = {arm.name for arm in tied}
    ordered = [*tied, *(arm for arm in near if arm.name not in first_names)]
    if ordered[0] is near[0]:
        return ordered, ""
    first = ordered[0]
    return ordered, (
        f"near tie: {first.name} is {first.mean - near[0].mean:.4f} behind {near[0].name}, within {policy.margin:g}, "
        f"and has the smallest spread (SD {first.sd:.4f})"
    )


def _why(
    arm: Arm, leader: Arm, limits: dict[str, float], places: dict[str, int], policy: WithinMargin, paid: int
) -> str:
    if arm.why_not:
        return arm.why_not
    behind = arm.mean - leader.mean
    if arm.is_baseline:
        return "the baseline is what the others are compared with"
    if arm.name not in places:
        return f"{behind:.4f} behind {leader.name}, more than {limits[arm.name]:.4f}"
    if paid < policy.most and places[arm.name] >= paid:
        return f"within {limits[arm.name]:.4f} of {leader.name}, but the budget does not pay for it"
    return f"within {limits[arm.name]:.4f} of {leader.name}, but at most {policy.most} go on"


def _sentence(
    study: Study,
    results: StageResults,
    policy: WithinMargin,
    verdict: Verdict,
    order: list[Arm],
    near: list[Arm],
    limits: dict[str, float],
) -> str:
    leader = order[0]
    if verdict.promoted:
        base = study.baseline.variant
        names = ", ".join(ref.name for ref in verdict.promoted if ref.name != base)
        return (
            f"promote {names}: the leader is {leader.name} with a mean {verdict.metric} of {leader.mean:.4f}, "
            f"{len(near)} of {len(order)} arms are within {max(limits.values()):.4f} of it"
        )
    if not near:
        return f"stop: the baseline leads ({leader.mean:.4f}) and no variant is within {max(limits.values()):.4f} of it"
    stages = list(study.stages)
    following = stages[stages.index(results.stage) + 1]
    others = len(with_baseline(study, results, [])) if policy.keep_baseline else 0
    needed = total([results.spent_usd, usd_to_end(study, following, 1 + others)])
    assert needed is not None
    limit = study.budget.usd or 0.0
    what = f"one variant from {following} to the end needs {format_usd(needed)}"
    return f"stop: budget: {what}, the budget is {format_usd(limit)}"
