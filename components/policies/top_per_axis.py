"""The best value of each axis, on its own, and all of them together.

Hypothesis: axes act about independently near the baseline, so that the best value of one, found with the others at the
baseline's, stays good with the others changed; the combined variant tests just that in the next stage.
Estimator: the mean of the metric over a value's seeds. Limits: a ranking, not a test; with one seed a value, the winner
of k equal values looks better than it is by about the expected minimum of k noises, so the next stage uses fresh seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from podium.components.study.design import baseline, experiments, make
from podium.components.study.policy import ArmCount, Policy
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config
from podium.components.study.verdict import Arm, ArmSummary, StageResults, VariantRef, Verdict
from podium.components.verdicts.arms import ranked, summaries
from podium.trainer.trial.errors import ConfigError, Problem

LONGEST_NAME = 60
COMBINED = "combined"


class TopPerAxis(Policy):
    """The best value of each axis goes on, with all of them combined and the baseline as finalists."""

    policy: Literal["top_per_axis"] = "top_per_axis"
    combine: bool = True
    """Add the variant that takes the top value of every axis."""
    keep_baseline: bool = True
    """The baseline goes on as well, so that the next stage can be compared with it."""

    place: ClassVar[int] = 20
    ranks_axes: ClassVar[bool] = True

    def design_problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """It needs the values of axes one at a time, as the first stage has them."""
        where = f"stages.{stage}.promotion.policy"
        if not study.axes or study.design != "one_at_a_time":
            yield Problem(where, f"{self.policy} needs axes and design: one_at_a_time")
        elif stage != next(iter(study.stages)):
            yield Problem(where, f"{self.policy} ranks the design's variants, so it can only be the first stage's")

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """The top of each axis, their combination and the baseline; fewer where tops are the baseline's values."""
        axes = len(study.axes) if axes is None else axes
        most = min(here.most, int(self.keep_baseline) + axes) + int(self.combine and axes > 1)
        return ArmCount(1, most, self.keep_baseline)

    def missing_baseline(self, study: Study) -> str:
        """The baseline stands for a value of every axis."""
        return f"{study.baseline.variant}, a value of every axis, takes no part in the stage"

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
        """Promote the baseline, the best value of each axis and their combination.

        Of equal means the baseline's value is taken, then the first name. Where a best value is the baseline's, the
        finalists are fewer, and the verdict says so.
        """
        order, base = ranked(arms), baseline(study)
        means = {arm.name: arm.mean for arm in order}
        refs = {arm.name: arm.variant for arm in arms}
        recorded = study.baseline.recorded.get(results.stage)
        if recorded is not None:
            means.setdefault(base.name, recorded.mean)
        tops: dict[str, str] = {}
        values: dict[str, object] = {}
        notes: list[str] = []
        for axis in study.axes:
            # the baseline stands in for its value, also where it is not among the axis's values
            rows = {row.variant: row.value for row in experiments(study) if row.axis == axis}
            rows.setdefault(base.name, base.axis_values[axis])
            able = sorted((means[name], name != base.name, name) for name in rows if name in means)
            tops[axis] = able[0][2]
            values[axis] = rows[tops[axis]]
            if len(able) == 1:
                notes.append(f"{axis}: no other value than {able[0][2]} can be ranked")
        winners = list(dict.fromkeys(name for name in tops.values() if name != base.name))
        chosen = sorted((refs[name] for name in winners), key=lambda ref: (means[ref.name], ref.name))
        if len(winners) < len(tops):
            axes = " and ".join(axis for axis, name in tops.items() if name == base.name)
            notes.append(f"the baseline has the best value of {axes}, so the finalists collapse into fewer")
        combined = _combined(study, results, base, winners, values, notes) if self.combine else None
        promoted = [*([base] if self.keep_baseline or not chosen else []), *chosen, *([combined] if combined else [])]
        names = {ref.name for ref in promoted}
        sentence = "; ".join(f"{axis}: {name} ({means[name]:.4f})" for axis, name in tops.items())
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote",
            reason=f"promote {', '.join(ref.name for ref in promoted)}: best {self.metric} by axis is {sentence}"
            + (f"; {notes[-1]}" if len(winners) < len(tops) else ""),
            promoted=promoted,
            winner=order[0].name,
            metric=self.metric,
            ranking=_against_baseline(summaries(arms, order), base.name, means.get(base.name)),
            tops=tops,
            not_chosen={arm.name: _why(study, arm, tops, means) for arm in arms if arm.name not in names},
            notes=notes,
        )


def _combined(
    study: Study,
    results: StageResults,
    base: VariantRef,
    winners: list[str],
    values: dict[str, object],
    notes: list[str],
) -> VariantRef | None:
    if len(winners) < 2:
        return None
    name = "-".join(winners)
    if len(name) > LONGEST_NAME or name in {ref.name for ref in results.variants}:
        name = COMBINED
    combined = make(study, base, values, name=name)
    try:
        variant_config(study, study.stage_after(results.stage) or results.stage, combined)
    except ConfigError as error:
        notes.append(f"the tops can't be combined: {error.problems[0].what}")
        return None
    return combined


def _against_baseline(table: list[ArmSummary], baseline_name: str, control: float | None) -> list[ArmSummary]:
    """The table with each ranked arm's difference to the baseline's mean, run or recorded."""
    if control is None:
        return table
    return [
        row.model_copy(update={"difference": row.mean - control})
        if row.mean is not None and row.rank is not None and row.variant != baseline_name
        else row
        for row in table
    ]


def _why(study: Study, arm: Arm, tops: dict[str, str], means: dict[str, float]) -> str:
    if arm.why_not:
        return arm.why_not
    axis = next((row.axis for row in experiments(study) if row.variant == arm.name), None)
    if axis is None:
        return "belongs to no axis" if not arm.is_baseline else "the policy does not keep the baseline"
    return f"{means[arm.name] - means[tops[axis]]:.4f} behind {tops[axis]} on {axis}"
