"""What a promotion policy asks of the study around it."""

from __future__ import annotations

from collections.abc import Iterator

from podium.components.study.fields import no_such_field, study_fields
from podium.components.study.promotion import BeatsBaseline, FastestToTarget, ReachesTarget, RefineRegion
from podium.components.study.schema import Study
from podium.trainer.errors import Problem

TIME = "time_to_target_seconds"


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
        if isinstance(policy, RefineRegion):
            if name == stages[-1]:
                yield Problem(f"{where}.policy", "refine_region makes the next stage's variants, and this is the last")
            fields = [("fields", policy.fields), ("log", policy.log), ("bounds", list(policy.bounds))]
            for part, named in [*fields, ("multiple_of", list(policy.multiple_of))]:
                for field in named:
                    if field not in study_fields():
                        yield Problem(f"{where}.{part}", no_such_field(field))
