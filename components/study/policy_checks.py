"""What a promotion policy asks of the study around it."""

from __future__ import annotations

from collections.abc import Iterator

from podium.components.study.fields import no_such_field, study_fields
from podium.components.study.promotion import (
    TIME,
    BeatsBaseline,
    Fallbacks,
    FastestToTarget,
    ReachesTarget,
    RefineRegion,
)
from podium.components.study.schema import Stage, Study
from podium.trainer.errors import Problem


def policy_problems(study: Study) -> Iterator[Problem]:
    """Policies that can't work where they stand, each with its place."""
    stages = list(study.stages)
    for index, (name, stage) in enumerate(study.stages.items()):
        policy, where = stage.promotion, f"stages.{name}.promotion"
        if isinstance(policy, FastestToTarget) and policy.metric != TIME:
            yield Problem(f"{where}.metric", f"must be {TIME!r} for fastest_to_target, got {policy.metric!r}")
        if isinstance(policy, BeatsBaseline | ReachesTarget) and policy.pivot is not None and index == 0:
            yield Problem(f"{where}.pivot", "takes the next best of the stage before, and this is the first stage")
        if isinstance(policy, BeatsBaseline) and policy.paired and name in study.baseline.recorded:
            yield Problem(
                f"{where}.paired", "needs the baseline's own seeds, and its figure here was recorded elsewhere"
            )
        if policy.metric == TIME:
            yield from _time_problems(name, stage)
        if isinstance(policy, FastestToTarget | RefineRegion):
            yield from _fallback_problems(name, stage, policy)
        if isinstance(policy, RefineRegion):
            if name == stages[-1]:
                yield Problem(f"{where}.policy", "refine_region makes the next stage's variants, and this is the last")
            fields = [("fields", policy.fields), ("log", policy.log), ("bounds", list(policy.bounds))]
            for part, named in [*fields, ("multiple_of", list(policy.multiple_of))]:
                for field in named:
                    if field not in study_fields():
                        yield Problem(f"{where}.{part}", no_such_field(field))


def _time_problems(name: str, stage: Stage) -> Iterator[Problem]:
    """A time says something only where a trial has its device to itself, and stops at its target."""
    if stage.stop.target is None:
        yield Problem(f"stages.{name}.stop.target", f"must be given: the stage ranks by {TIME}")
    resources = stage.resources
    if not resources.gpus_per_trial and resources.parallel > 1 and not resources.share_cpu:
        yield Problem(
            f"stages.{name}.resources.parallel",
            f"must be 1: the stage ranks times, and trials would share the CPU (resources.share_cpu: true says that "
            f"they may), got {resources.parallel}",
        )


def _fallback_problems(name: str, stage: Stage, policy: FastestToTarget | RefineRegion) -> Iterator[Problem]:
    where, fallbacks, rule = f"stages.{name}.promotion.fallbacks", policy.fallbacks, stage.stop.target
    if fallbacks != Fallbacks() and policy.metric != TIME:
        yield Problem(where, f"are for a stage that ranks by {TIME}, got metric {policy.metric!r}")
    elif rule is not None:
        looser = [loss for loss in rule.losses if loss > rule.loss]
        if fallbacks.relax is not None and fallbacks.relax not in looser:
            timed = ", ".join(f"{loss:g}" for loss in looser) or "none"
            yield Problem(
                f"{where}.relax",
                f"must be a looser loss that stop.target.also times ({timed}), got {fallbacks.relax:g}",
            )
        if fallbacks.tighten is not None and fallbacks.tighten.target >= rule.loss:
            got = fallbacks.tighten.target
            yield Problem(f"{where}.tighten.target", f"must be under the target {rule.loss:g}, got {got:g}")
