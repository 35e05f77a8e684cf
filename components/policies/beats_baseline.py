"""Variants that are better than the baseline, by more than a margin.

Hypothesis tested: no variant is better than the baseline by more than `margin` (normal errors). Estimator: difference
of means over seeds, its noise by the variance pooled over arms, Welch's for an arm whose variance differs.
One variant: one-sided t; several: Dunnett's test, so that `alpha` holds for all of them; with Welch's or paired seeds,
whose joint law is not Dunnett's, Holm's correction. Paired seeds share data order and initialisation; pairing is used
only if it was declared. A figure recorded elsewhere, or a threshold, is compared with in the same way but proves
nothing. Limits: Dunnett's test takes the arms' noise as one; the interval shown is of each arm alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from podium.components.study.policy import ArmCount, needs_baseline_run
from podium.components.study.schema import Recorded, Study
from podium.components.study.verdict import Arm, MoreTrials, StageResults, Verdict
from podium.components.verdicts.arms import claim_of, doubts_of_proof, one_seed, ranked, summaries, with_baseline
from podium.components.verdicts.pivot import Pivot, TargetGap, pivot, pivot_problems
from podium.components.verdicts.power import Proof, ProofPolicy
from podium.components.verdicts.stats import Compared, compare_arms
from podium.trainer.trial.errors import Problem


class BeatsBaseline(ProofPolicy):
    """Variants better than the baseline by more than `margin` go on; what does not hold gives way to a pivot."""

    policy: Literal["beats_baseline"] = "beats_baseline"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """One-sided level, over all comparisons of the stage."""
    margin: float = Field(default=0.0, ge=0)
    """Superiority margin in the metric's unit: the variant has to be better by more than this."""
    paired: bool = False
    """Compare seed by seed. To be declared: it needs a baseline with the same seeds, and pays where they correlate."""
    variance: Literal["guarded", "pooled", "welch"] = "guarded"
    """guarded: pooled over arms, Welch's for an arm whose variance differs from the others'."""
    every_seed: bool = False
    """Also ask that each seed is better than the baseline's mean (than its own baseline seed where paired)."""
    threshold: float | None = None
    """Compared with where no baseline is run or recorded for the stage: the mean has to be under it."""
    threshold_source: str = ""
    """Where the threshold comes from. Needed with one."""
    most: int = Field(default=1, ge=1)
    """Variants that go on at most, the best first."""
    keep_baseline: bool = True
    """The baseline goes on as well, to be compared with, where the next stage has no recorded figure or threshold."""
    pivot: Pivot | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.threshold is not None and not self.threshold_source:
            raise ValueError("threshold_source must say where the threshold comes from, got none")
        return self

    place: ClassVar[int] = 60
    stand_ins: ClassVar[tuple[str, ...]] = ("threshold", "threshold_source")

    @property
    def replaces_baseline(self) -> bool:
        """By a threshold."""
        return self.threshold is not None

    @property
    def most_pivots(self) -> int:
        """One arm each."""
        return self.pivot.most if self.pivot is not None else 0

    def problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """A pivot needs a stage before, pairs a baseline that runs."""
        yield from pivot_problems(study, stage, self.pivot)
        if self.paired and stage in study.baseline.recorded:
            where = f"stages.{stage}.promotion.paired"
            yield Problem(where, "needs the baseline's own seeds, and its figure here was recorded elsewhere")
        yield from super().problems(study, stage)

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """At most `most`, and the baseline where it has to be run."""
        following = study.stage_after(stage)
        joins = self.keep_baseline and following is not None and needs_baseline_run(study, following)
        most = min(max(1, here.most - int(here.has_baseline)), self.most)
        return ArmCount(1 + int(joins), most + int(joins), joins)

    def proof(self, study: Study, stage: str, arms: int) -> Proof:
        """Against the baseline, or against the figure that stands for it."""
        ran = stage not in study.baseline.recorded and self.threshold is None
        against: Literal["baseline", "target"] = "baseline" if ran else "target"
        return Proof(against, self.alpha, arms, self.margin, paired=self.paired and ran)

    def is_shown(self, each: Compared) -> bool:
        """Whether the arm is shown to be better, by every seed where that is asked."""
        return each.p is not None and each.p < self.alpha and not (self.every_seed and each.worse_seeds)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
        """Promote the variants that beat the baseline; where none does, pivot if that is declared, else stop."""
        order = ranked(arms)
        control = next((arm for arm in order if arm.is_baseline), None)
        others = [arm for arm in order if not arm.is_baseline]
        mark = _mark(study, results, self, control)
        if mark is None or not others:
            why = "there is no variant beside the baseline" if mark is not None else (
                "no baseline is run or recorded for the stage, and no threshold is declared"
            )  # fmt: skip
            return _verdict(study, results, self, arms, order, [], [], mark, [], f"stop: {why}")
        compared = compare_arms(
            others,
            control,
            order,
            mark,
            alpha=self.alpha,
            margin=self.margin,
            variance=self.variance,
            paired=self.paired,
        )
        better = [each for each in compared if self.is_shown(each)]
        notes: list[str] = []
        if not better and self.pivot is not None:
            first = compared[0]
            gap = TargetGap(first.difference + self.margin, first.error, first.arm.n, self.alpha)
            answer = pivot(study, results, self.pivot, self.metric, first.arm, gap)
            if isinstance(answer, MoreTrials):
                return answer
            notes.append(answer.note)
            better = [first] if answer.goes_on else []
        return _verdict(study, results, self, arms, order, compared, better[: self.most], mark, notes)


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
    if not policy.is_shown(winner):
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
    if policy.is_shown(found):
        return f"better, but at most {policy.most} go on"
    worse = f", seed {found.worse_seeds[0]} is not better" if policy.every_seed and found.worse_seeds else ""
    return f"{found.difference:+.4f} against the baseline, p = {found.p:.3g}{worse}"
