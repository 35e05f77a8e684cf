"""The graph of a compiled pipeline, read back: which stages it can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from podium.components.study.graph import graph_problems
from podium.components.study.load import load_study, shipped_studies
from podium.trainer.errors import Problem, UserError

if TYPE_CHECKING:
    from podium.components.study.schema import Study

PREPARE = "prepare-data"


def check_graph(study: Study, pipeline: str) -> None:
    """Raise UserError, in words, where a study does not fit a pipeline's graph.

    `pipeline` is a compiled pipeline's YAML file, or a study (a shipped one's name, or its file), whose own graph is
    meant.
    """
    problems = graph_problems(study, graph_stages(pipeline))
    if problems:
        raise UserError(problems, source=f"pipeline {pipeline}")


def graph_stages(pipeline: str) -> list[str]:
    """The stages of a pipeline's graph, in order. Raises UserError for what is no pipeline and no study."""
    if pipeline in shipped_studies():
        return list(load_study(pipeline).stages)
    try:
        text = Path(pipeline).read_text(encoding="utf-8")
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            Problem("--pipeline", f"must be a pipeline that podium compiled, or a study: {pipeline}: {error}")
        ) from None
    if not documents or "pipelineInfo" not in documents[0]:
        return list(load_study(pipeline).stages)
    try:
        compiled = documents[0]["root"]["dag"]["tasks"][PREPARE]["inputs"]["parameters"]["compiled_gpus"]
        counts = compiled["runtimeValue"]["constant"]
    except KeyError:
        raise UserError(Problem("--pipeline", f"{pipeline} is no pipeline that this podium compiled")) from None
    return [part.partition("=")[0] for part in counts.split(",")]
