"""Which studies a compiled pipeline can run: its graph depends on the stages' names and order, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from podium.components.study.load import load_study, read_study_text, shipped_studies
from podium.components.study.schema import Study
from podium.components.study.yaml_text import parse_yaml
from podium.trainer.errors import Problem, UserError


def graph_problems(study: Study, graph: Sequence[str]) -> list[Problem]:
    """Why a study can't run on the graph with these stages, and which graph it needs; empty where it can."""
    stages = list(study.stages)
    if stages == list(graph):
        return []
    fitting = next(shipped_with(stages), None)
    instead = (
        f"run it by the pipeline {fitting}"
        if fitting is not None and fitting != study.name
        else "compile the study again and upload that (podium upload STUDY --profile PROFILE)"
    )
    return [
        Problem(
            "study",
            f"its stages are {' → '.join(stages)} (profile {study.profile}), and this pipeline's graph has "
            f"{' → '.join(graph)}: a graph follows the stages' names, so this study needs another one; {instead}",
        )
    ]


def shipped_with(stages: Sequence[str]) -> Iterator[str]:
    """Shipped studies whose graph, as uploaded, has exactly these stages."""
    for name in shipped_studies():
        try:
            found = list(load_study(name).stages)
        except UserError:  # a study that does not load under this version fits nothing
            continue
        if found == list(stages):
            yield name


def other_graphs(source: str) -> dict[str, list[str]]:
    """Profiles of a study whose stages are not those of `full`, with their stages: each needs a pipeline of its own."""
    text, name = read_study_text(source)
    data = parse_yaml(text, name)
    profiles = [each for each in (data.get("profiles") or {}) if each != "full"] if isinstance(data, dict) else []
    stages = list(load_study(source).stages)
    found = {profile: list(load_study(source, profile=profile).stages) for profile in profiles}
    return {profile: names for profile, names in found.items() if names != stages}
