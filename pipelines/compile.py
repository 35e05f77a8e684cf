"""A study as a compiled pipeline: one YAML file whose size does not depend on the number of variants or trials.

The YAML is written here from KFP's pipeline spec, not by `kfp.compiler`: its header comment copies the inputs'
defaults as they are, so that the second line of a study's text lands outside the comment and the file does not parse.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from podium.components.prepare_data.gpus import study_gpus
from podium.components.study.load import graph_problems, load_study, shipped_studies
from podium.pipelines.installation import Installation, images, placement
from podium.trainer.trial.errors import Problem, UserError
from podium.trainer.trial.storage import open_storage

if TYPE_CHECKING:
    from podium.components.study.schema import Study


MAX_TEXT_BYTES = 100_000
"""All inputs of a step travel in one command line, of which Linux takes 128 KiB an argument."""
PLACEHOLDER = "{{$"
DEFAULT_STORE = "s3://bucket/prefix"
CONDUCTOR_REQUESTS = {"cpu": "250m", "memory": "512Mi"}
"""Of a stage's own pod under `launcher: job`: it follows its trials and computes nothing."""


@dataclass(frozen=True)
class Options:
    """How a study is compiled, beside its text: the inputs' defaults and what the installation sets."""

    profile: str = "full"
    store: str | None = None
    """None for the installation's, else a placeholder."""
    budget_usd: float | None = None
    launcher: str | None = None
    """None for the installation's."""
    selection: str = ""
    parallel: int | None = None
    """Trials at once, where the selection says so: the pods' GPUs follow."""
    priority: str = ""
    installation: Installation = field(default_factory=Installation)


def compile_study(study: Study, out: Path, *, text: str, options: Options | None = None) -> Path:
    """Compile the study's pipeline to `out`, and return `out`.

    `text` with the options' profile is what the pipeline carries as its inputs' defaults, `study` what they resolve to:
    it shapes the graph and gives the GPU counts. A text over 100 kB is put into the store (`studies/<sha256>.yaml`) and
    its URI is the default instead. Raises UserError where that needs a store and none is given.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(pipeline_yaml(study_pipeline(study, text=text, options=options)), encoding="utf-8")
    return out


def study_pipeline(study: Study, *, text: str, options: Options | None = None) -> Any:
    """The KFP pipeline of a study; arguments as of `compile_study`."""
    # kfp takes half a second to import, and the command line imports this module for its signatures
    from podium.pipelines.ladder import Defaults, build_ladder

    options = options or Options()
    site = options.installation
    launcher = options.launcher or site.launcher
    store = options.store or site.store
    defaults = Defaults(
        study=study_input(text, store),
        profile=options.profile,
        store=store or DEFAULT_STORE,
        budget="" if options.budget_usd is None else f"{options.budget_usd:g}",
        launcher=launcher,
        selection=options.selection,
        priority=options.priority,
        secret=site.secret,
        config=site.config,
        gpus=study_gpus(study, launcher, options.parallel),
        **requests(study, launcher, options.parallel),
        **placement(study, site),
        **images(site),
        image_pull_policy=site.image_pull_policy,
        image_pull_secrets=tuple(site.image_pull_secrets),
        shared_memory=site.shared_memory,
    )
    return build_ladder(study.name, list(study.stages), defaults, description=study.title or study.question)


def requests(study: Study, launcher: str, parallel: int | None = None) -> dict[str, Any]:
    """CPU and memory that each stage's pod requests: its trials', or a conductor's where each trial is a Job."""
    if launcher == "job":
        return {kind: dict.fromkeys(study.stages, amount) for kind, amount in CONDUCTOR_REQUESTS.items()}
    return {
        kind: {
            name: _times(asked, parallel or stage.resources.parallel)
            for name, stage in study.stages.items()
            if (asked := getattr(stage.resources, kind))
        }
        for kind in CONDUCTOR_REQUESTS
    }


def _times(quantity: str, count: int) -> str:
    """A Kubernetes quantity (`500m`, `8Gi`) so many times."""
    number = quantity.rstrip(string.ascii_letters)
    return f"{(Decimal(number) * count).normalize():f}{quantity[len(number) :]}"


def study_input(text: str, store: str | None) -> str:
    """What the pipeline input `study` holds: the text, or the URI under which one that can't travel so was stored.

    Raises UserError where that needs a store and none is given.
    """
    data = text.encode()
    # KFP takes `{{$` in a value for a placeholder of its own, and kfp.local falls over it.
    if len(data) <= MAX_TEXT_BYTES and PLACEHOLDER not in text:
        return text
    if store is None:
        what = f"has {len(data):,} bytes" if len(data) > MAX_TEXT_BYTES else f"has {PLACEHOLDER!r} in it"
        raise UserError(
            f"the study's text {what}, and a pipeline input holds at most {MAX_TEXT_BYTES:,} bytes without "
            f"{PLACEHOLDER!r}: name the store into which the text can be put (--store)"
        )
    storage = open_storage(store)
    key = f"studies/{hashlib.sha256(data).hexdigest()}.yaml"
    storage.create(key, data)
    return f"{storage.uri}/{key}"


def pipeline_documents(pipeline: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline as data: its spec, and its Kubernetes settings."""
    from google.protobuf import json_format

    return json_format.MessageToDict(pipeline.pipeline_spec), json_format.MessageToDict(pipeline.platform_spec)


def pipeline_yaml(pipeline: Any) -> str:
    """The pipeline as the YAML that Kubeflow takes: its spec, and its Kubernetes settings as a second document."""
    spec, platform = pipeline_documents(pipeline)
    name = spec["pipelineInfo"]["name"]
    return f"# Pipeline {name}, made by `podium compile`: edit the study, not this file.\n" + yaml.dump_all(
        [spec, platform], Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=120
    )


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a study can be read in the compiled file."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat what occurs twice: Kubeflow's reader knows no YAML anchors."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


# The graph of a compiled pipeline, read back: which stages it can run.

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
        # the package is KFP's, of several documents: read as KFP reads it, not as a study
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
