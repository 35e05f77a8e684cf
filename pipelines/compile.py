"""A study as a compiled pipeline: one YAML file whose size does not depend on the number of variants or trials.

The YAML is written here from KFP's pipeline spec, not by `kfp.compiler`: its header comment copies the inputs'
defaults as they are, so that the second line of a study's text lands outside the comment and the file does not parse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from podium.components.prepare_data.gpus import study_gpus
from podium.trainer.errors import UserError
from podium.trainer.storage import open_storage

if TYPE_CHECKING:
    from podium.components.study.schema import Study

MAX_TEXT_BYTES = 100_000
"""All inputs of a step travel in one command line, of which Linux takes 128 KiB an argument."""
PLACEHOLDER = "{{$"
DEFAULT_STORE = "s3://bucket/prefix"


def compile_study(
    study: Study,
    out: Path,
    *,
    text: str,
    profile: str,
    store: str | None = None,
    budget_usd: float | None = None,
    launcher: str = "process",
    selection: str = "",
    node_selectors: Mapping[str, dict[str, str]] | None = None,
    tolerations: Mapping[str, list[dict[str, Any]]] | None = None,
) -> Path:
    """Compile the study's pipeline to `out`, and return `out`.

    `text` with `profile` is what the pipeline carries as its inputs' defaults, `study` what they resolve to: it shapes
    the graph and gives the GPU counts. A text over 100 kB is put into the store (`studies/<sha256>.yaml`) and its URI
    is the default instead. Raises UserError where that needs a store and none is given.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    pipeline = study_pipeline(
        study,
        text=text,
        profile=profile,
        store=store,
        budget_usd=budget_usd,
        launcher=launcher,
        selection=selection,
        node_selectors=node_selectors,
        tolerations=tolerations,
    )
    out.write_text(pipeline_yaml(pipeline), encoding="utf-8")
    return out


def study_pipeline(
    study: Study,
    *,
    text: str,
    profile: str,
    store: str | None = None,
    budget_usd: float | None = None,
    launcher: str = "process",
    selection: str = "",
    node_selectors: Mapping[str, dict[str, str]] | None = None,
    tolerations: Mapping[str, list[dict[str, Any]]] | None = None,
) -> Any:
    """The KFP pipeline of a study; arguments as of `compile_study`."""
    # kfp takes half a second to import, and the command line imports this module for its signatures
    from podium.pipelines.ladder import Defaults, build_ladder

    defaults = Defaults(
        study=study_input(text, store),
        profile=profile,
        store=store or DEFAULT_STORE,
        budget="" if budget_usd is None else f"{budget_usd:g}",
        launcher=launcher,
        selection=selection,
        gpus=study_gpus(study, launcher),
        node_selectors=dict(node_selectors or {}),
        tolerations=dict(tolerations or {}),
    )
    return build_ladder(study.name, list(study.stages), defaults, description=study.title or study.question)


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


def pipeline_yaml(pipeline: Any) -> str:
    """The pipeline as the YAML that Kubeflow takes: its spec, and its Kubernetes settings as a second document."""
    from google.protobuf import json_format

    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    platform = json_format.MessageToDict(pipeline.platform_spec)
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
