"""A study onto a cluster's Kubeflow Pipelines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from podium.pipelines.compile import study_pipeline
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
    from kfp.client import Client
    from kfp_server_api import ApiException  # type: ignore[import-untyped]

    try:
        client = Client(host=host, namespace=namespace or "kubeflow", existing_token=token)
        made: Any = client.create_run_from_pipeline_func(
            pipeline,
            arguments={},
            run_name=f"{study.name} {profile}",
            experiment_name=experiment or study.name,
            namespace=namespace,
            enable_caching=False,
        )
    except ApiException as error:
        raise UserError(f"{where} refused the run: {error.status} {error.reason}") from None
    except Exception as error:
        # urllib3, requests, kubernetes and google-auth each raise their own when there is nobody to talk to
        raise UserError(f"{where} can't be reached: {type(error).__name__}: {_first_line(error)}") from error
    return Submitted(
        made.run_id, f"{study.name} {profile}", f"{host.rstrip('/')}/#/runs/details/{made.run_id}" if host else None
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
