"""What a stage's variants are compared with: the baseline that is run there, or a figure that stands for it."""

from __future__ import annotations

from podium.components.study.promotion import BeatsBaseline
from podium.components.study.schema import Study


def needs_baseline_run(study: Study, stage: str) -> bool:
    """Whether the baseline has to take part in a stage after the first for the others to be compared with it.

    Not where its figure is recorded for the stage, or where the stage's policy declares a threshold in its place.
    """
    policy = study.stages[stage].promotion
    has_threshold = isinstance(policy, BeatsBaseline) and policy.threshold is not None
    return stage not in study.baseline.recorded and not has_threshold
