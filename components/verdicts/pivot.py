"""The next best of the stage before, where the arm that was promoted does not hold and another one can be paid for.

An arm is given up where its rule does not promote it (`not_shown`: the interval of its difference includes no
improvement), or only where it is futile: where another look with as many fresh seeds would succeed with less than
`futility`. That predictive probability takes the true difference as normal around the one seen (flat prior) and the
next one as normal around the true: P(next + z·SE < 0) = Φ((-d/SE - z) / sqrt(2)), with z the quantile of alpha.
Source: D. J. Spiegelhalter, L. S. Freedman, P. R. Blackburn, "Monitoring clinical trials: conditional or predictive
power?", Controlled Clinical Trials 7 (1986). Limits: normal errors, SE taken as known.

A pivot costs level: each arm that is tried has its own chance to pass by luck. Where k arms may be tried in all, each
is tested together with the others of its stage, since they stay in its results, so the adjustment counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from podium.components.policies.schema import Metric, Pivot
from podium.components.study.cost import total, usd_to_end
from podium.components.study.schema import Study
from podium.components.verdicts.arms import Arm
from podium.components.verdicts.verdict import MoreTrials, StageResults, VariantRef
from podium.trainer.trial.units import format_usd


@dataclass(frozen=True)
class Standing:
    """How an arm stands against what it has to beat."""

    difference: float
    """Its mean minus the mark, margin included: below 0 is better."""
    error: float | None
    """Standard error of the difference."""
    n: int
    alpha: float


@dataclass(frozen=True)
class NoPivot:
    """Why there is no pivot."""

    note: str
    goes_on: bool = False
    """Whether the arm goes on as a candidate: it is not shown, but not futile either."""


def predictive_probability(standing: Standing) -> float | None:
    """Probability that as many fresh seeds would show the difference; None where nothing estimates the noise."""
    if standing.error is None or standing.error == 0:
        return None
    quantile = float(stats.norm.isf(standing.alpha))
    return float(stats.norm.cdf((-standing.difference / standing.error - quantile) / math.sqrt(2)))


def pivot(
    study: Study, results: StageResults, rule: Pivot, metric: Metric, arm: Arm, standing: Standing
) -> MoreTrials | NoPivot:
    """Ask for the next best of the stage before, or say why not."""
    chance = predictive_probability(standing)
    said = "" if chance is None else f"another {standing.n} seeds would show it with probability {chance:.2f}"
    if rule.when == "futile" and chance is not None and chance >= rule.futility:
        return NoPivot(f"no pivot: {said}, not under {rule.futility:g}", goes_on=True)
    taken = pivots_taken(study, results)
    if taken >= rule.most:
        return NoPivot(f"no pivot left: {taken} of {rule.most} taken")
    following = next_best(study, results)
    if following is None:
        return NoPivot("no pivot: the stage before ranked nobody else")
    needed = total([results.spent_usd, usd_to_end(study, results.stage, 1)])
    limit = study.budget.usd
    if limit is not None and needed is not None and needed > limit + 1e-9:
        return NoPivot(
            f"budget: a pivot to {following.name} needs {format_usd(needed)}, the budget is {format_usd(limit)}"
        )
    mark = f"{standing.difference:+.4f} against what it has to beat"
    return MoreTrials(
        reason=f"pivot from {arm.name} to {following.name}: {metric} {mark}" + (f"; {said}" if said else ""),
        kind="pivot",
        variants=[following],
        seeds=results.seeds,
    )


def pivots_taken(study: Study, results: StageResults) -> int:
    """Variants of the stage that the verdict before did not promote, the baseline apart."""
    if not results.previous:
        return 0
    promoted = {ref.name for ref in results.previous[-1].promoted} | {study.baseline.variant}
    return sum(ref.name not in promoted for ref in results.variants)


def next_best(study: Study, results: StageResults) -> VariantRef | None:
    """The best variant of the stage before that takes no part in this one yet, the baseline apart."""
    if not results.previous or results.previous[-1].results is None:
        return None
    before = results.previous[-1]
    assert before.results is not None
    here = {ref.name for ref in results.variants} | {study.baseline.variant}
    refs = {ref.name: ref for ref in before.results.variants}
    for row in sorted((row for row in before.ranking if row.rank is not None), key=lambda row: row.rank or 0):
        if row.variant not in here and row.variant in refs:
            return refs[row.variant]
    return None
