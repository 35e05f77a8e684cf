"""The best variant that is shown to be under a target.

Hypothesis tested: the mean is at or above the target. Estimator: mean over fresh seeds at a fixed number of seeds and a
fixed last step; one-sided one-sample Student's t by the variant's own SD (as the NanoGPT speedrun asks, at 0.01), or z
where `sigma` is declared. With several variants Holm's correction keeps alpha for all of them together. The variance is
not pooled: the claim is about one variant, and a noisy one must not borrow the others' calm.
Limits: roughly normal errors; at few seeds Student's t asks for a large margin (three seeds, SD 0.0012, alpha 0.01:
0.0048), which `podium power` tells beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from podium.components.study.policy import ArmCount
from podium.components.study.schema import Recorded, Study
from podium.components.study.verdict import Arm, MoreTrials, StageResults, Verdict
from podium.components.verdicts.arms import claim_of, doubts_of_proof, one_seed, ranked, summaries
from podium.components.verdicts.pivot import Pivot, TargetGap, pivot, pivot_problems
from podium.components.verdicts.power import Proof, ProofPolicy
from podium.components.verdicts.stats import TargetTest, against_target, compare_arms, holm
from podium.trainer.trial.errors import Problem


class ReachesTarget(ProofPolicy):
    """The best variant whose mean is shown to be under the target goes on; none is a stop."""

    policy: Literal["reaches_target"] = "reaches_target"
    target: float
    """In the metric's unit."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """One-sided level, over all variants of the stage."""
    sigma: float | None = Field(default=None, gt=0)
    """A known SD over seeds: a z test. None: Student's t by the variant's own SD."""
    pivot: Pivot | None = None

    place: ClassVar[int] = 70

    @property
    def most_pivots(self) -> int:
        """One arm each."""
        return self.pivot.most if self.pivot is not None else 0

    def problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """A pivot needs a stage before."""
        yield from pivot_problems(study, stage, self.pivot)
        yield from super().problems(study, stage)

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """The winner alone."""
        return ArmCount(1, 1, False)

    def proof(self, study: Study, stage: str, arms: int) -> Proof:
        """Against the target."""
        return Proof("target", self.alpha, arms, known_sigma=self.sigma is not None)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
        """Promote the best of the variants that are shown to reach the target; stop, or pivot, where none is.

        The baseline is tested only where it is the only arm.
        """
        order = ranked(arms)
        candidates = [arm for arm in order if not arm.is_baseline] or order
        tests = {
            arm.name: against_target(arm.mean, arm.sd, arm.n, self.target, alpha=self.alpha, sigma=self.sigma)
            for arm in candidates
        }
        adjusted = holm({name: test.p for name, test in tests.items() if test.p is not None})
        shown = [arm for arm in candidates if adjusted.get(arm.name, 1.0) < self.alpha]
        notes: list[str] = []
        if not shown and self.pivot is not None:
            best = candidates[0]
            gap = TargetGap(best.mean - self.target, tests[best.name].error, best.n, self.alpha)
            answer = pivot(study, results, self.pivot, self.metric, best, gap)
            if isinstance(answer, MoreTrials):
                return answer
            notes.append(answer.note)
            if answer.goes_on:
                shown, notes = [best], [*notes, f"{best.name} goes on without being shown to reach the target"]
        winner = shown[0] if shown else None
        doubts = _doubts(study, results, self, winner, adjusted)
        proven = winner is not None and not doubts
        if winner is not None and doubts:
            notes.append("not proven: " + "; ".join(doubts))
        table = [
            row.model_copy(
                update={
                    "difference": row.mean - self.target if row.mean is not None and row.rank else None,
                    "p": adjusted.get(row.variant),
                }
            )
            for row in summaries(arms, order)
        ]
        first = winner or candidates[0]
        beside = beside_baseline(study, results, first, order, self.alpha)
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote" if winner is not None else "stop",
            reason=_sentence(self, winner, first, adjusted.get(first.name), proven, doubts, notes),
            promoted=[winner.variant] if winner is not None else [],
            winner=winner.name if winner is not None else None,
            proven=proven,
            claim=claim_of(results, proven=proven) if winner is not None else "none",
            metric=self.metric,
            ranking=table,
            test=_test(self, tests[first.name], adjusted.get(first.name), len(candidates))
            | ({"baseline": beside} if beside else {}),
            not_chosen={arm.name: _why(arm, winner, self, adjusted) for arm in arms if arm is not winner},
            notes=[*notes, to_sentence(first, beside)] if beside else notes,
        )


# An arm beside the baseline where the verdict is about something else, such as a target: said, and decided by nothing.
#
# By the test of `beats_baseline` for one arm: variance pooled over the stage's arms where the baseline ran in it, the
# arm's own spread against a figure recorded elsewhere, which is descriptive (its seeds, code and machine are not ours).


def beside_baseline(study: Study, results: StageResults, arm: Arm, order: list[Arm], alpha: float) -> dict[str, Any]:
    """Mean, SD, n and source of the baseline's figure, with difference, interval and p; empty where there is none."""
    control = next((each for each in order if each.is_baseline), None)
    recorded = study.baseline.recorded.get(results.stage)
    if arm.is_baseline or (control is None and recorded is None):
        return {}
    if control is not None:
        mark = Recorded(mean=control.mean, sd=control.sd, n=control.n, source="run in this stage")
    else:
        assert recorded is not None
        mark = recorded
    (found,) = compare_arms([arm], control, order, mark, alpha=alpha)
    return {
        **mark.model_dump(),
        "difference": found.difference,
        "interval": found.interval,
        "p": found.p,
        "method": found.method,
    }


def to_sentence(arm: Arm, found: dict[str, Any]) -> str:
    """What `beside_baseline` found."""
    spread = "" if found["sd"] is None else f" ± {found['sd']:g}"
    number = "" if found["n"] is None else f", n = {found['n']}"
    said = f"{arm.name} is {found['difference']:+.4f} against the baseline's {found['mean']:.4f}{spread}{number}"
    if found["p"] is not None:
        said += f" (one-sided p = {found['p']:.2g})"
    descriptive = "; descriptive, since it was not run here" if found["method"] == "descriptive" else ""
    return f"{said}, {found['source']}{descriptive}"


def _doubts(
    study: Study, results: StageResults, policy: ReachesTarget, winner: Arm | None, adjusted: dict[str, float]
) -> list[str]:
    if winner is None:
        return []
    doubts = [*doubts_of_proof(study, results, [winner]), one_seed([winner])]
    p = adjusted.get(winner.name)
    if p is None or p >= policy.alpha:
        said = "the seeds show no variance to test with" if p is None else f"p = {p:.3g}"
        doubts.append(f"{said}, alpha = {policy.alpha:g}")
    return [doubt for doubt in doubts if doubt]


def _test(policy: ReachesTarget, test: TargetTest, p: float | None, comparisons: int) -> dict[str, Any]:
    name = "one-sided z by a known SD" if policy.sigma is not None else "one-sided one-sample t"
    return {
        "name": name if test.p is not None else "none",
        "control": f"target {policy.target:g}",
        "target": policy.target,
        "alpha": policy.alpha,
        "comparisons": comparisons,
        "sigma": policy.sigma,
        "pooled_sd": None,
        "degrees_of_freedom": test.degrees_of_freedom or 0,
        "statistic": test.statistic,
        "p_unadjusted": test.p,
        "p": p,
        "upper": test.upper,
    }


def _sentence(
    policy: ReachesTarget,
    winner: Arm | None,
    first: Arm,
    p: float | None,
    proven: bool,
    doubts: list[str],
    notes: list[str],
) -> str:
    spread = f" ± {first.sd:.4f}" if first.sd is not None else ""
    seeds = f"{first.n} {'seed' if first.n == 1 else 'seeds'}"
    said = "nothing to test with" if p is None else f"p = {p:.2g}"
    figure = (
        f"{first.name} has a mean {policy.metric} of {first.mean:.4f}{spread} over {seeds}, target {policy.target:g}"
    )
    if winner is None:
        if notes and notes[-1].startswith("budget:"):
            return f"stop: {notes[-1]}; {figure} ({said}, alpha {policy.alpha:g})"
        ending = f"; {notes[-1]}" if notes else ""
        return f"stop: no variant is shown to reach the target: {figure} ({said}, alpha {policy.alpha:g}){ending}"
    if proven:
        return f"promote {winner.name}: {figure}; proven ({said} < {policy.alpha:g})"
    return f"promote {winner.name}: {figure} ({said}); a candidate, since {doubts[0]}"


def _why(arm: Arm, winner: Arm | None, policy: ReachesTarget, adjusted: dict[str, float]) -> str:
    if arm.why_not:
        return arm.why_not
    if winner is not None and arm.name in adjusted and adjusted[arm.name] < policy.alpha:
        return f"{arm.mean - winner.mean:.4f} behind {winner.name}"
    if arm.name not in adjusted:
        return "the baseline is not a candidate" if arm.is_baseline else "nothing to test with"
    return f"{arm.mean - policy.target:+.4f} against the target, p = {adjusted[arm.name]:.3g}"
