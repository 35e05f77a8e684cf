"""A study onto a cluster's Kubeflow Pipelines, as one run of its pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from podium.pipelines.compile import Options, pipeline_documents, study_pipeline
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import Kubeflow, open_kubeflow
from podium.pipelines.kubeflow.links import run_link

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
