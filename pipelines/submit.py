"""A study onto a cluster's Kubeflow Pipelines, as one run of its pipeline."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from podium.pipelines.compile import Options, pipeline_documents, pipeline_yaml, study_pipeline
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import (
    Kubeflow,
    KubeflowError,
    RefusedError,
    UnreachableError,
    Version,
    open_kubeflow,
    pipeline_link,
    run_link,
)

if TYPE_CHECKING:
    from podium.components.study.schema import Study


@dataclass(frozen=True)
class Submitted:
    """A run that Kubeflow has taken."""

    id: str
    name: str
    link: str | None
    """The run's page; None where only an address is known that no browser can open."""
    store: str
    address: Address
    """Where it runs: what `wait` asks."""


def submit_study(
    study: Study,
    address: Address | None = None,
    *,
    text: str,
    options: Options,
    experiment: str | None = None,
    service_account: str | None = None,
) -> Submitted:
    """Start the study's pipeline on Kubeflow; `text` and `options` as of `compile_study`.

    `experiment` defaults to the study's name. Raises UserError where Kubeflow can't be reached or refuses.
    """
    with open_kubeflow(address) as kubeflow:
        return submit_to(
            kubeflow, study, text=text, options=options, experiment=experiment, service_account=service_account
        )


def submit_to(
    kubeflow: Kubeflow,
    study: Study,
    *,
    text: str,
    options: Options,
    experiment: str | None = None,
    service_account: str | None = None,
) -> Submitted:
    """`submit_study` on a Kubeflow that is open."""
    kubeflow.check_namespace()
    spec, platform = pipeline_documents(study_pipeline(study, text=text, options=options))
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    # Stated as the run's inputs too, so that its page and a clone of it show them. Not the text: Kubeflow's database
    # holds 64 KiB of inputs, and the pipeline has it as its default anyway.
    told = {name: each["defaultValue"] for name, each in inputs.items() if name != "study"}
    name = f"{study.name} {options.profile}"
    run_id = kubeflow.create_run(
        name,
        experiment_id=kubeflow.experiment(experiment or study.name),
        pipeline={"pipeline_spec": spec, "platform_spec": platform},
        parameters=told,
        description=" ".join((study.title or study.question).split()),
        service_account=service_account,
    )
    return Submitted(run_id, name, run_link(kubeflow.address, run_id), str(told["store"]), kubeflow.address)


# Upload a study as a pipeline, with one version per content. A version's name is derived from what is compiled, so that
# uploading the same study again, by hand or at an upgrade of the chart, gives the same name, which Kubeflow refuses.

HASH_DIGITS = 12
POLL_SECONDS = 3.0


@dataclass(frozen=True)
class Uploaded:
    """A study's pipeline in Kubeflow."""

    study: str
    pipeline: str
    version: str
    outcome: Literal["new version", "unchanged"]
    newest: bool
    """Whether it is the version that Kubeflow shows first; an older one that is uploaded again stays behind."""
    link: str | None


def upload_study(kubeflow: Kubeflow, study: Study, *, text: str, options: Options) -> Uploaded:
    """Make the study's pipeline and its version in Kubeflow, where they are missing."""
    from podium import __version__
    from podium.pipelines.ladder import pipeline_name

    pipeline = study_pipeline(study, text=text, options=options)
    name = f"{__version__}-{content_hash(pipeline)}"
    description = " ".join((study.title or study.question).split())
    pipeline_id = kubeflow.pipeline(pipeline_name(study.name), display_name=study.name, description=description)
    there = kubeflow.versions(pipeline_id)
    version = _named(there, name)
    outcome: Literal["new version", "unchanged"] = "unchanged"
    if version is None:
        try:
            version = kubeflow.upload_version(pipeline_id, name, pipeline_yaml(pipeline), description=description)
            outcome = "new version"
        except (RefusedError, KubeflowError):
            # another upload of the same study was first; older servers say so by 500 instead of 409
            there = kubeflow.versions(pipeline_id)
            version = _named(there, name)
            if version is None:
                raise
    return Uploaded(
        study=study.name,
        pipeline=pipeline_name(study.name),
        version=name,
        outcome=outcome,
        newest=outcome == "new version" or not there or there[0].name == name,
        link=pipeline_link(kubeflow.address, pipeline_id, version.id),
    )


def content_hash(pipeline: Any) -> str:
    """Identity of a compiled pipeline: everything that it says but the version of the KFP SDK that wrote it down."""
    spec, platform = pipeline_documents(pipeline)
    spec = copy.deepcopy(spec)
    spec.pop("sdkVersion", None)
    text = json.dumps([spec, platform], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def await_api(kubeflow: Kubeflow, seconds: float) -> None:
    """Wait until the API answers, for an installation whose parts start together. Raises what it answered last."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            kubeflow.multi_user()
            return
        except (UnreachableError, KubeflowError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def _named(versions: list[Version], name: str) -> Version | None:
    return next((each for each in versions if each.name == name), None)
