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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from podium.components.study.schema import Metric, Study
from podium.components.study.trials import total, usd_to_end
from podium.components.study.verdict import Arm, MoreTrials, StageResults, VariantRef
from podium.components.verdicts.stats import normal_cdf, normal_quantile
from podium.trainer.trial.errors import Problem
from podium.trainer.trial.section import Section, format_usd


class Pivot(Section):
    """What to do where the arm that was promoted does not hold: try the next best of the stage before."""

    most: int = Field(default=1, ge=1)
    """Pivots that the stage may take, one arm each."""
    when: Literal["not_shown", "futile"] = "not_shown"
    """not_shown: whenever the rule does not promote. futile: only where another look with as many fresh seeds would
    succeed with less than `futility`; an arm that is neither shown nor futile goes on as a candidate."""
    futility: float = Field(default=0.1, gt=0, lt=1)
    """Predictive probability of success under which an arm is given up."""


def pivot_problems(study: Study, stage: str, pivot: Pivot | None) -> Iterator[Problem]:
    """Why a policy of this stage can't pivot."""
    if pivot is not None and stage == next(iter(study.stages)):
        where = f"stages.{stage}.promotion.pivot"
        yield Problem(where, "takes the next best of the stage before, and this is the first stage")


@dataclass(frozen=True)
class TargetGap:
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


def predictive_probability(gap: TargetGap) -> float | None:
    """Probability that as many fresh seeds would show the difference; None where nothing estimates the noise."""
    if gap.error is None or gap.error == 0:
        return None
    return normal_cdf((-gap.difference / gap.error - normal_quantile(gap.alpha)) / math.sqrt(2))


def pivot(
    study: Study, results: StageResults, rule: Pivot, metric: Metric, arm: Arm, gap: TargetGap
) -> MoreTrials | NoPivot:
    """Ask for the next best of the stage before, or say why not."""
    chance = predictive_probability(gap)
    said = "" if chance is None else f"another {gap.n} seeds would show it with probability {chance:.2f}"
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
    mark = f"{gap.difference:+.4f} against what it has to beat"
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
