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
from typing import ClassVar, Literal

from pydantic import Field

from podium.components.study.policy import ArmCount, Policy, needs_baseline_run
from podium.components.study.schema import Study
from podium.components.study.trials import payable, total, usd_to_end
from podium.components.study.verdict import Arm, StageResults, VariantRef, Verdict
from podium.components.verdicts.arms import near_tie, ranked, summaries, with_baseline
from podium.components.verdicts.stats import normal_quantile, pooled_over, t_quantile
from podium.trainer.trial.section import format_usd


class WithinMargin(Policy):
    """Every variant within δ of the leader goes on, capped by count and by money."""

    policy: Literal["within_margin"] = "within_margin"
    margin: float = Field(default=0.0, ge=0)
    """δ in the metric's unit: a difference that does not matter."""
    alpha: float | None = Field(default=None, gt=0, lt=0.5)
    """Widens δ by what seeds can't tell apart: t(1 - alpha) · pooled SD · sqrt(1/n + 1/n_leader). None: by nothing."""
    sigma: float | None = Field(default=None, gt=0)
    """A known SD over seeds, used with `alpha` instead of the pooled one (a stage with one seed has none)."""
    most: int = Field(default=2, ge=1)
    """Variants that go on at most, the baseline not counted."""
    keep_baseline: bool = True
    """The baseline goes on as well, to be compared with, where the next stage has no recorded figure or threshold."""
    tie_break: Literal["spread", "mean"] = "spread"
    """Who goes first among those within `margin`: the smallest SD over seeds, or the best mean."""

    place: ClassVar[int] = 50

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """At most `most` and what can be paid for, and the baseline where it has to be run."""
        following = study.stage_after(stage)
        joins = self.keep_baseline and following is not None and needs_baseline_run(study, following)
        most = min(max(1, here.most - int(here.has_baseline)), self.most)
        if following is not None and spent is not None:
            most = max(1, payable(study, following, spent, most, baseline=joins))
        return ArmCount(1 + int(joins), most + int(joins), joins)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
        """Promote the variants within δ of the leader: those within the margin first, the least spread at their head.

        A leading baseline is no candidate but sets the mark; where no variant is near it, the verdict is a stop.
        """
        order = ranked(arms)
        leader, pool = order[0], pooled_over(order)
        sd, degrees = (pool.sd, pool.degrees_of_freedom) if self.sigma is None else (self.sigma, 0)
        quantile = self._quantile(sd, degrees)
        limits = {
            arm.name: self.margin
            + (0.0 if sd is None or arm is leader else quantile * sd * math.sqrt(1 / arm.n + 1 / leader.n))
            for arm in order
        }
        near = [arm for arm in order if not arm.is_baseline and arm.mean - leader.mean <= limits[arm.name]]
        near, note = _by_spread(near, leader, self)
        paid = _payable(study, results, self, len(near))
        chosen = near[: min(self.most, paid)]
        names = {arm.name for arm in chosen}
        places = {arm.name: place for place, arm in enumerate(near)}
        notes = [note] if note else []
        if paid < min(self.most, len(near)):
            notes.append(f"{paid} of {min(self.most, len(near))} can be paid to the end of the study")
        verdict = Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote" if chosen else "stop",
            reason="",
            promoted=_promoted(study, results, self, chosen),
            winner=chosen[0].name if chosen else None,
            claim="candidate" if chosen else "none",
            metric=self.metric,
            ranking=summaries(arms, order),
            test={
                "name": "none",
                "why": "a selection by indifference proves nothing",
                "leader": leader.name,
                "leader_mean": leader.mean,
                "pooled_sd": sd,
                "degrees_of_freedom": degrees,
                "limits": limits,
            },
            not_chosen={
                arm.name: _why(arm, leader, limits, places, self, paid) for arm in arms if arm.name not in names
            },
            notes=notes,
        )
        return verdict.model_copy(update={"reason": _sentence(study, results, self, verdict, order, near, limits)})

    def _quantile(self, sd: float | None, degrees: int) -> float:
        if self.alpha is None or sd is None:
            return 0.0
        return normal_quantile(self.alpha) if self.sigma is not None else t_quantile(self.alpha, degrees)


def _payable(study: Study, results: StageResults, policy: WithinMargin, most: int) -> int:
    """How many variants the next stage can be paid for, with the baseline if it has to be run, and those after it."""
    following = study.stage_after(results.stage)
    if following is None:
        return most
    joins = policy.keep_baseline and bool(with_baseline(study, results, []))
    return payable(study, following, results.spent_usd, most, baseline=joins)


def _promoted(study: Study, results: StageResults, policy: WithinMargin, chosen: list[Arm]) -> list[VariantRef]:
    refs = [arm.variant for arm in chosen]
    return with_baseline(study, results, refs) if refs and policy.keep_baseline else refs


def _by_spread(near: list[Arm], leader: Arm, policy: WithinMargin) -> tuple[list[Arm], str]:
    """The same arms with those within the margin ordered by spread, and a sentence if that changed the first."""
    if policy.tie_break == "mean":
        return near, ""
    tied, sentence = near_tie(near, leader, policy.margin)
    names = {arm.name for arm in tied}
    return [*tied, *(arm for arm in near if arm.name not in names)], sentence


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
    following = study.stage_after(results.stage)
    assert following is not None, "what follows is what the budget does not pay for"
    others = len(with_baseline(study, results, [])) if policy.keep_baseline else 0
    needed = total([results.spent_usd, usd_to_end(study, following, 1 + others)])
    assert needed is not None
    limit = study.budget.usd or 0.0
    what = f"one variant from {following} to the end needs {format_usd(needed)}"
    return f"stop: budget: {what}, the budget is {format_usd(limit)}"
