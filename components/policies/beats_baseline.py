"""Variants that are better than the baseline, by more than a margin.

Hypothesis tested: no variant is better than the baseline by more than `margin` (normal errors). Estimator: difference
of means over seeds, its noise by the variance pooled over arms (`noise.py`), Welch's for an arm whose variance differs.
One variant: one-sided t; several: Dunnett's test, so that `alpha` holds for all of them; with Welch's or paired seeds,
whose joint law is not Dunnett's, Holm's correction. Paired seeds share data order and initialisation; pairing is used
only if it was declared. A figure recorded elsewhere, or a threshold, is compared with in the same way but proves
nothing. Limits: Dunnett's test takes the arms' noise as one; the interval shown is of each arm alone.
"""

from __future__ import annotations

import math
from typing import Any

from podium.components.policies.schema import BeatsBaseline
from podium.components.study.schema import Recorded, Study
from podium.components.verdicts.arms import Arm, claim_of, doubts_of_proof, one_seed, ranked, summaries, with_baseline
from podium.components.verdicts.pivot import Standing, pivot
from podium.components.verdicts.stats import Compared, compare_arms, holds
from podium.components.verdicts.verdict import MoreTrials, StageResults, Verdict


def beats_baseline(study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
    """Promote the variants that beat the baseline; where none does, pivot if that is declared, else stop."""
    policy = study.stages[results.stage].promotion
    assert isinstance(policy, BeatsBaseline)
    order = ranked(arms)
    control = next((arm for arm in order if arm.is_baseline), None)
    others = [arm for arm in order if not arm.is_baseline]
    mark = _mark(study, results, policy, control)
    if mark is None or not others:
        why = "there is no variant beside the baseline" if mark is not None else (
            "no baseline is run or recorded for the stage, and no threshold is declared"
        )  # fmt: skip
        return _verdict(study, results, policy, arms, order, [], [], mark, [], f"stop: {why}")
    compared = compare_arms(others, control, order, mark, policy)
    better = [each for each in compared if holds(each, policy)]
    notes: list[str] = []
    if not better and policy.pivot is not None:
        first = compared[0]
        standing = Standing(first.difference + policy.margin, first.error, first.arm.n, policy.alpha)
        answer = pivot(study, results, policy.pivot, policy.metric, first.arm, standing)
        if isinstance(answer, MoreTrials):
            return answer
        notes.append(answer.note)
        better = [first] if answer.goes_on else []
    return _verdict(study, results, policy, arms, order, compared, better[: policy.most], mark, notes)


def _mark(study: Study, results: StageResults, policy: BeatsBaseline, control: Arm | None) -> Recorded | None:
    if control is not None:
        return Recorded(mean=control.mean, sd=control.sd, n=control.n, source=f"{control.name}, run in this stage")
    recorded = study.baseline.recorded.get(results.stage)
    if recorded is None and policy.threshold is not None:
        return Recorded(mean=policy.threshold, source=f"threshold: {policy.threshold_source}")
    return recorded


def _verdict(
    study: Study,
    results: StageResults,
    policy: BeatsBaseline,
    arms: list[Arm],
    order: list[Arm],
    compared: list[Compared],
    better: list[Compared],
    mark: Recorded | None,
    notes: list[str],
    stopped: str = "",
) -> Verdict:
    by_name = {each.arm.name: each for each in compared}
    control = next((arm for arm in order if arm.is_baseline), None)
    first = better[0] if better else compared[0] if compared else None
    doubts = _doubts(study, results, policy, better[0], control) if better else []
    proven = bool(better) and not doubts
    if better and doubts:
        notes = [*notes, "not proven: " + "; ".join(doubts)]
    refs = [each.arm.variant for each in better]
    table = summaries(arms, order)
    for index, row in enumerate(table):
        found = by_name.get(row.variant)
        if found is not None:
            update = {"difference": found.difference, "interval": found.interval, "p": found.p}
            table[index] = row.model_copy(update=update)
    chosen = {ref.name for ref in refs}
    return Verdict(
        stage=results.stage,
        policy=policy.policy,
        parameters={},
        decision="promote" if better else "stop",
        reason=stopped or _sentence(policy, first, mark, bool(better), proven, doubts, notes),
        promoted=with_baseline(study, results, refs) if refs and policy.keep_baseline else refs,
        winner=better[0].arm.name if better else None,
        proven=proven,
        claim=claim_of(results, proven=proven) if better else "none",
        metric=policy.metric,
        ranking=table,
        test=_test(policy, first, mark, control, len(compared)),
        not_chosen={arm.name: _why(arm, by_name, policy) for arm in arms if arm.name not in chosen},
        notes=notes,
    )


def _doubts(
    study: Study, results: StageResults, policy: BeatsBaseline, winner: Compared, control: Arm | None
) -> list[str]:
    sides = [winner.arm, *([control] if control is not None else [])]
    doubts = [*doubts_of_proof(study, results, sides), one_seed(sides)]
    if control is None:
        doubts.append("what it is compared with was not run here")
    if not holds(winner, policy):
        said = "the seeds show no variance to test with" if winner.p is None else f"p = {winner.p:.3g}"
        doubts.append(f"{said}, alpha = {policy.alpha:g}")
    return [doubt for doubt in doubts if doubt]


def _test(
    policy: BeatsBaseline, first: Compared | None, mark: Recorded | None, control: Arm | None, comparisons: int
) -> dict[str, Any]:
    if first is None or mark is None or first.statistic is None:
        why = "no comparison" if first is None or mark is None else "nothing estimates the noise"
        return {"name": "none", "why": why, **(mark.model_dump() if mark is not None else {})}
    joint = "Dunnett" if first.method == "pooled" and comparisons > 1 else f"{first.method} t"
    if first.method == "descriptive":
        joint = "t against a figure that was not run here"
    return {
        "name": f"one-sided {joint}",
        "control": control.name if control is not None else mark.source,
        "control_mean": mark.mean,
        "alpha": policy.alpha,
        "margin": policy.margin,
        "comparisons": comparisons,
        "pooled_sd": None if first.method != "pooled" or first.error is None or control is None else (
            first.error / math.sqrt(1 / first.arm.n + 1 / control.n)
        ),
        "degrees_of_freedom": first.degrees_of_freedom,
        "statistic": first.statistic,
        "p": first.p,
    }  # fmt: skip


def _sentence(
    policy: BeatsBaseline,
    first: Compared | None,
    mark: Recorded | None,
    promoted: bool,
    proven: bool,
    doubts: list[str],
    notes: list[str],
) -> str:
    assert first is not None
    assert mark is not None
    arm = first.arm
    said = "nothing to test with" if first.p is None else f"p = {first.p:.2g}"
    margin = f" by more than {policy.margin:g}" if policy.margin else ""
    figure = (
        f"{arm.name} has a mean {policy.metric} of {arm.mean:.4f} over {arm.n} {'seed' if arm.n == 1 else 'seeds'}, "
        f"{first.difference:+.4f} against {mark.mean:.4f} ({mark.source})"
    )
    if not promoted:
        seeds = f", seed {first.worse_seeds[0]} is not better" if policy.every_seed and first.worse_seeds else ""
        if notes and notes[-1].startswith("budget:"):
            return f"stop: {notes[-1]}; {figure} ({said}, alpha {policy.alpha:g}{seeds})"
        ending = f"; {notes[-1]}" if notes else ""
        return f"stop: no variant is better{margin}: {figure} ({said}, alpha {policy.alpha:g}{seeds}){ending}"
    if proven:
        return f"promote {arm.name}: {figure}; proven better{margin} ({said} < {policy.alpha:g})"
    return f"promote {arm.name}: {figure} ({said}); a candidate, since {doubts[0]}"


def _why(arm: Arm, compared: dict[str, Compared], policy: BeatsBaseline) -> str:
    if arm.why_not:
        return arm.why_not
    found = compared.get(arm.name)
    if found is None:
        return "the baseline is what the others are compared with" if arm.is_baseline else "nothing to compare with"
    if found.p is None:
        return "nothing estimates the noise of its difference"
    if holds(found, policy):
        return f"better, but at most {policy.most} go on"
    worse = f", seed {found.worse_seeds[0]} is not better" if policy.every_seed and found.worse_seeds else ""
    return f"{found.difference:+.4f} against the baseline, p = {found.p:.3g}{worse}"
