"""The best value of each axis, on its own, and all of them together.

Hypothesis: axes act about independently near the baseline, so that the best value of one, found with the others at the
baseline's, stays good with the others changed; the combined variant tests just that in the next stage.
Estimator: the mean of the metric over a value's seeds. Limits: a ranking, not a test; with one seed a value, the winner
of k equal values looks better than it is by about the expected minimum of k noises, so the next stage uses fresh seeds.
"""

from __future__ import annotations

from podium.components.policies.schema import TopPerAxis
from podium.components.study.design import baseline, experiments, make
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config
from podium.components.verdicts.arms import Arm, ranked, summaries
from podium.components.verdicts.verdict import ArmSummary, StageResults, VariantRef, Verdict
from podium.trainer.trial.errors import ConfigError

LONGEST_NAME = 60
COMBINED = "combined"


def top_per_axis(study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
    """Promote the baseline, the best value of each axis and their combination.

    Of equal means the baseline's value is taken, then the first name. Where a best value is the baseline's, the
    finalists are fewer, and the verdict says so.
    """
    policy = study.stages[results.stage].promotion
    assert isinstance(policy, TopPerAxis)
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
        axes = [axis for axis, name in tops.items() if name == base.name]
        notes.append(f"the baseline has the best value of {' and '.join(axes)}, so the finalists collapse into fewer")
    combined = _combined(study, results, base, winners, values, notes) if policy.combine else None
    promoted = [*([base] if policy.keep_baseline or not chosen else []), *chosen, *([combined] if combined else [])]
    names = {ref.name for ref in promoted}
    sentence = "; ".join(f"{axis}: {name} ({means[name]:.4f})" for axis, name in tops.items())
    return Verdict(
        stage=results.stage,
        policy="top_per_axis",
        parameters={},
        decision="promote",
        reason=f"promote {', '.join(ref.name for ref in promoted)}: best {policy.metric} by axis is {sentence}"
        + (f"; {notes[-1]}" if len(winners) < len(tops) else ""),
        promoted=promoted,
        winner=order[0].name,
        metric=policy.metric,
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
    stages = list(study.stages)
    following = stages[min(stages.index(results.stage) + 1, len(stages) - 1)]
    try:
        variant_config(study, following, combined)
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
