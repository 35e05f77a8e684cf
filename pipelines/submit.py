"""A study onto a cluster's Kubeflow Pipelines."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podium.pipelines.compile import pipeline_yaml, study_pipeline
from podium.trainer.errors import UserError

if TYPE_CHECKING:
    from podium.components.study.schema import Study

HOST = "KF_PIPELINES_ENDPOINT"
"""Environment: the address of Kubeflow's API; KFP's own name for it."""


@dataclass(frozen=True)
class Submitted:
    """A run that Kubeflow has taken."""

    id: str
    name: str
    link: str | None
    """The run's page; None where Kubeflow's user interface is elsewhere than its API, inside the cluster."""


def submit_study(
    study: Study,
    host: str | None = None,
    *,
    text: str,
    profile: str,
    store: str,
    budget_usd: float | None = None,
    launcher: str = "process",
    selection: str = "",
    namespace: str | None = None,
    experiment: str | None = None,
    token: str | None = None,
) -> Submitted:
    """Start the study's pipeline on Kubeflow; `text` and `profile` as of `compile_study`.

    `host` defaults to `KF_PIPELINES_ENDPOINT`, else to the service inside the cluster; `token` is a bearer token;
    `experiment` defaults to the study's name. Raises UserError where Kubeflow can't be reached or refuses.
    """
    pipeline = study_pipeline(
        study,
        text=text,
        profile=profile,
        store=store,
        budget_usd=budget_usd,
        launcher=launcher,
        selection=selection,
    )
    host = host or os.environ.get(HOST)
    where = host or "the cluster's own Kubeflow Pipelines"
    name = f"{study.name} {profile}"
    from kfp.client import Client
    from kfp_server_api import ApiException  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # KFP greets every client with it, whatever the server
        warnings.filterwarnings("ignore", message="This client only works with Kubeflow", category=FutureWarning)
        package = Path(scratch) / "pipeline.yaml"
        # not by create_run_from_pipeline_func: KFP's own YAML does not survive a text of several lines
        package.write_text(pipeline_yaml(pipeline), encoding="utf-8")
        try:
            client = Client(host=host, namespace=namespace or "kubeflow", existing_token=token)
            made: Any = client.create_run_from_pipeline_package(
                str(package),
                arguments={},
                run_name=name,
                experiment_name=experiment or study.name,
                namespace=namespace,
                enable_caching=False,
            )
        except ApiException as error:
            raise UserError(f"{where} refused the run: {error.status} {error.reason}") from None
        except Exception as error:
            # urllib3, requests, kubernetes and google-auth each raise their own when there is nobody to talk to
            raise UserError(f"{where} can't be reached: {_first_line(getattr(error, 'reason', error))}") from error
    link = f"{host.rstrip('/')}/#/runs/details/{made.run_id}" if host else None
    return Submitted(made.run_id, name, link)


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
