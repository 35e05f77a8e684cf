"""How many GPUs each stage's pod requests: what the study says, and the pipeline inputs that must say the same.

Kubeflow reads a pod's GPU count from a pipeline input, never from the study's text, so the count is stated twice and
somebody can edit one of the two. The rule that lets the study be edited in the browser and still catches a slip:

- a count that is the study's is right;
- a count that nobody changed since the pipeline was compiled is no statement about an edited text or another profile:
  it is taken, with a note, wherever the trials can run on it (at least one trial's GPUs, or a stage on the CPU);
- any other count contradicts the study and is refused in words;
- under `launcher: job` it must be 0, changed or not: the pod would hold GPUs that its own Jobs wait for.
"""

from __future__ import annotations

from podium.components.study.load import graph_problems
from podium.components.study.schema import Resources, Study
from podium.trainer.trial.errors import Problem


def stage_gpus(resources: Resources, launcher: str, parallel: int | None = None) -> int:
    """GPUs that a stage's own pod requests: those of all its trials at once, none where each trial is a Job."""
    return 0 if launcher == "job" else resources.gpus_per_trial * (parallel or resources.parallel)


def study_gpus(study: Study, launcher: str, parallel: int | None = None) -> dict[str, int]:
    """Stage → GPUs that its pod requests. `parallel`: trials at once instead of each stage's own number."""
    return {name: stage_gpus(stage.resources, launcher, parallel) for name, stage in study.stages.items()}


def parse_gpus(text: str) -> dict[str, str]:
    """`stage=count,…`, as the pipeline joins its GPU inputs; a count stays the text that somebody typed."""
    return {stage: count.strip() for stage, _, count in (part.partition("=") for part in text.split(",") if part)}


def gpu_problems(
    study: Study, gpus: str, launcher: str, parallel: int | None = None, compiled: str = ""
) -> list[Problem]:
    """What in the GPU inputs contradicts the study, in words. No inputs at all (empty text) contradict nothing.

    `compiled` are the same inputs as the pipeline was compiled with; empty where that is not known.
    """
    if not gpus:
        return []
    given = parse_gpus(gpus)
    problems = [
        Problem(f"GPU input of stage {name}", _contradiction(study, name, given[name], launcher, parallel))
        for name, needed in study_gpus(study, launcher, parallel).items()
        if name in given and not _is(given[name], needed) and not _is_left(study, name, given, compiled, launcher)
    ]
    return problems + graph_problems(study, list(given))


def gpu_notes(study: Study, gpus: str, launcher: str, parallel: int | None = None, compiled: str = "") -> list[str]:
    """What to say of counts that were left as compiled while the study asks for others."""
    given = parse_gpus(gpus)
    return [
        f"stage {name}: its pod has {given[name]} GPUs, as the pipeline was compiled, and the study would use "
        f"{needed}: set its GPU input to {needed} to match"
        for name, needed in study_gpus(study, launcher, parallel).items()
        if name in given and not _is(given[name], needed) and _is_left(study, name, given, compiled, launcher)
    ]


def _is(count: str, needed: int) -> bool:
    return (count or "0") == str(needed)


def _is_left(study: Study, stage: str, given: dict[str, str], compiled: str, launcher: str) -> bool:
    """Whether nobody changed the count and the stage's trials can run on it."""
    count = given[stage]
    if launcher == "job" or count != parse_gpus(compiled).get(stage) or not count.isdecimal():
        return False
    return int(count) >= study.stages[stage].resources.gpus_per_trial


def _contradiction(study: Study, stage: str, count: str, launcher: str, parallel: int | None) -> str:
    resources = study.stages[stage].resources
    why = (
        "with launcher job each trial's Job takes its own GPUs and the stage's pod none"
        if launcher == "job"
        else f"the study asks for {resources.gpus_per_trial} per trial × {parallel or resources.parallel} at once"
    )
    return f"must be {stage_gpus(resources, launcher, parallel)} ({why}), got {count!r}: change it or the study"
