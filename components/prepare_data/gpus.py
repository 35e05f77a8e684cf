"""How many GPUs each stage's pod requests: what the study says, and the pipeline inputs that must say the same.

Kubeflow reads a pod's GPU count from a pipeline input, never from the study's text, so the count is stated twice and
somebody can edit one of the two.
"""

from __future__ import annotations

from podium.components.study.schema import Resources, Study
from podium.trainer.errors import Problem


def stage_gpus(resources: Resources, launcher: str, parallel: int | None = None) -> int:
    """GPUs that a stage's own pod requests: those of all its trials at once, none where each trial is a Job."""
    return 0 if launcher == "job" else resources.gpus_per_trial * (parallel or resources.parallel)


def study_gpus(study: Study, launcher: str, parallel: int | None = None) -> dict[str, int]:
    """Stage → GPUs that its pod requests. `parallel`: trials at once instead of each stage's own number."""
    return {name: stage_gpus(stage.resources, launcher, parallel) for name, stage in study.stages.items()}


def parse_gpus(text: str) -> dict[str, str]:
    """`stage=count,…`, as the pipeline joins its GPU inputs; a count stays the text that somebody typed."""
    return {stage: count.strip() for stage, _, count in (part.partition("=") for part in text.split(",") if part)}


def gpu_problems(study: Study, gpus: str, launcher: str, parallel: int | None = None) -> list[Problem]:
    """What in the GPU inputs contradicts the study, in words. No inputs at all (empty text) contradict nothing."""
    if not gpus:
        return []
    given, problems = parse_gpus(gpus), []
    for name, needed in study_gpus(study, launcher, parallel).items():
        count = given.get(name, "")
        if (count or "0") == str(needed):
            continue
        resources = study.stages[name].resources
        why = (
            "with launcher job each trial's Job takes its own GPUs and the stage's pod none"
            if launcher == "job"
            else f"the study asks for {resources.gpus_per_trial} per trial × {parallel or resources.parallel} at once"
        )
        problems.append(
            Problem(f"GPU input of stage {name}", f"must be {needed} ({why}), got {count!r}: change it or the study")
        )
    unknown = [name for name in given if name not in study.stages]
    if unknown or len(given) < len(study.stages):
        problems.append(
            Problem(
                "study",
                f"its stages are {', '.join(study.stages)}, and this pipeline's graph has {', '.join(given)}: "
                "compile the study again, the graph follows the stages' names",
            )
        )
    return problems
