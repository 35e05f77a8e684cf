"""The best mean over seeds wins, and is proven if it beats the baseline.

Hypothesis tested: no arm is better than the baseline (normal errors, one variance for all arms).
Estimator: difference of means over fresh seeds, variance pooled over all arms, which with 3 seeds an arm needs a third
of the margin that each arm's own variance would. One arm: one-sided Student's t; several: Dunnett's test, so that
`alpha` holds for the best of them. Limits: equal variances; a figure recorded elsewhere proves nothing.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from podium.components.study.design import baseline
from podium.components.study.policy import ArmCount, needs_baseline_run
from podium.components.study.schema import Study
from podium.components.study.verdict import Arm, ArmSummary, StageResults, VariantRef, Verdict
from podium.components.verdicts.arms import claim_of, doubts_of_proof, near_tie, ranked, summaries
from podium.components.verdicts.power import Proof, ProofPolicy
from podium.components.verdicts.stats import PooledVariance, better_than_control, interval, pooled_over


class BestMean(ProofPolicy):
    """The best mean over seeds wins; it is proven if it beats the baseline at `alpha` with pooled variance."""

    policy: Literal["best_mean"] = "best_mean"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """One-sided level of the test against the baseline, over all comparisons of the stage."""
    near_tie: float = Field(default=0.0, ge=0)
    """Means closer than this (in the metric's unit) are a near tie; the smaller spread goes first."""

    place: ClassVar[int] = 30

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """The winner, and the baseline where it has to be run."""
        joins = _baseline_joins(study, stage)
        return ArmCount(1, min(here.most, 1 + int(joins)), joins)

    def proof(self, study: Study, stage: str, arms: int) -> Proof:
        """Against the baseline that ran in the stage."""
        return Proof("baseline", self.alpha, arms)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
        """Promote the arm with the lowest mean; of those within `near_tie` of it the one with the smaller spread."""
        order = ranked(arms)
        near, tie = near_tie(order, order[0], self.near_tie)
        if tie:
            order = [near[0], *(arm for arm in order if arm is not near[0])]
        winner = order[0]
        control = next((arm for arm in order if arm.is_baseline), None)
        table, test = _compare(study, results, self, arms, order, control)
        row = next(row for row in table if row.variant == winner.name)
        doubts = _doubts(study, results, self, winner, control, test, row)
        proven = not doubts
        notes = [tie] if tie else []
        if not proven:
            notes.append("not proven: " + "; ".join(doubts))
        if any(arm.is_baseline and not arm.why_not for arm in arms) and winner.is_baseline:
            notes.append("nothing beat the baseline")
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote",
            reason=_sentence(self, winner, row, proven, doubts),
            promoted=_promoted(study, results, winner),
            winner=winner.name,
            proven=proven,
            claim=claim_of(results, proven=proven),
            metric=self.metric,
            ranking=table,
            test=test,
            not_chosen={arm.name: _why(arm, winner, self.metric) for arm in arms if arm is not winner},
            notes=notes,
        )


def _compare(
    study: Study, results: StageResults, policy: BestMean, arms: list[Arm], order: list[Arm], control: Arm | None
) -> tuple[list[ArmSummary], dict[str, Any]]:
    """The table with differences, intervals and p, and what the test was."""
    table = summaries(arms, order)
    recorded = study.baseline.recorded.get(results.stage)
    if control is None:
        if recorded is None:
            return table, {"name": "none", "why": "no baseline in this stage"}
        described = [
            row.model_copy(update={"difference": row.mean - recorded.mean})
            if row.rank and row.mean is not None
            else row
            for row in table
        ]
        return described, {
            "name": "none",
            "why": "the baseline's figure was recorded elsewhere",
            **recorded.model_dump(),
        }
    others = [arm for arm in order if arm is not control]
    pool = pooled_over(order)
    test: dict[str, Any] = {
        "name": "one-sided pooled-variance t" if len(others) == 1 else "one-sided Dunnett",
        "alpha": policy.alpha,
        "control": control.name,
        "control_mean": control.mean,
        "comparisons": len(others),
        "pooled_sd": pool.sd,
        "degrees_of_freedom": pool.degrees_of_freedom,
    }
    if not others:
        test["name"] = "none"
    sizes = [arm.n for arm in others]
    rows = {row.variant: row for row in table}
    for arm in others:
        difference = arm.mean - control.mean
        rows[arm.name] = rows[arm.name].model_copy(update={"difference": difference})
        if pool.sd:
            update, statistic = _test_one(arm, control, pool, sizes, policy.alpha)
            rows[arm.name] = rows[arm.name].model_copy(update=update)
            if arm is order[0]:
                test |= {"statistic": statistic, "p": update["p"]}
    return list(rows.values()), test


def _test_one(
    arm: Arm, control: Arm, pool: PooledVariance, sizes: list[int], alpha: float
) -> tuple[dict[str, Any], float]:
    assert pool.sd is not None
    difference = arm.mean - control.mean
    error = pool.sd * math.sqrt(1 / arm.n + 1 / control.n)
    statistic = -difference / error
    p = better_than_control(statistic, sizes, control.n, pool.degrees_of_freedom)
    return {"p": p, "interval": interval(difference, error, pool.degrees_of_freedom, alpha)}, statistic


def _doubts(
    study: Study,
    results: StageResults,
    policy: BestMean,
    winner: Arm,
    control: Arm | None,
    test: dict[str, Any],
    row: ArmSummary,
) -> list[str]:
    """Every reason for which the winner is not proven; none if it is."""
    if winner.is_baseline:
        return ["the winner is the baseline"]
    doubts = doubts_of_proof(study, results, [winner, *([control] if control is not None else [])])
    if control is None:
        return [*doubts, str(test["why"])]
    if winner.n < 2 or control.n < 2:
        doubts.append(f"one seed never proves ({winner.name} has {winner.n}, {control.name} {control.n})")
    elif not test["pooled_sd"]:
        doubts.append("the seeds show no variance, so there is nothing to test with")
    elif row.p is None or row.p >= policy.alpha:
        doubts.append(f"p = {row.p:.3g} is not under alpha = {policy.alpha:g}" if row.p is not None else "no p")
    return doubts


def _promoted(study: Study, results: StageResults, winner: Arm) -> list[VariantRef]:
    """The winner, and the baseline where the next stage has to run it for comparison."""
    if winner.is_baseline or not _baseline_joins(study, results.stage):
        return [winner.variant]
    return [winner.variant, baseline(study)]


def _baseline_joins(study: Study, stage: str) -> bool:
    following = study.stage_after(stage)
    return following is not None and needs_baseline_run(study, following)


def _sentence(policy: BestMean, winner: Arm, row: ArmSummary, proven: bool, doubts: list[str]) -> str:
    spread = f" ± {winner.sd:.4f}" if winner.sd is not None else ""
    seeds = f"{winner.n} {'seed' if winner.n == 1 else 'seeds'}"
    figure = f"{winner.name} has the best mean {policy.metric}, {winner.mean:.4f}{spread} over {seeds}"
    if row.difference is not None:
        figure += f", {row.difference:+.4f} against the baseline"
    if proven:
        assert row.p is not None
        return f"promote {winner.name}: {figure}; proven (p = {row.p:.2g} < {policy.alpha:g})"
    return f"promote {winner.name}: {figure}; a candidate, since {doubts[0]}"


def _why(arm: Arm, winner: Arm, metric: str) -> str:
    if arm.why_not:
        return arm.why_not
    behind = arm.mean - winner.mean
    if behind < 0:
        return f"{-behind:.4f} ahead in mean {metric}, but within the near tie and with more spread"
    return f"{behind:.4f} behind {winner.name}"
