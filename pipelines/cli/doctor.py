"""`podium doctor`: is everything there that a run on a cluster needs, and what to do where it is not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.options import (
    Ca,
    Cookie,
    Host,
    Insecure,
    InstallationFile,
    Json,
    KubeflowNamespace,
    Namespace,
    PortForward,
    Token,
    Username,
    address,
    command,
    result_json,
    stdout,
)
from podium.pipelines.cli.submit import StoreOption
from podium.trainer.trial.errors import ExitCode

if TYPE_CHECKING:
    from podium.pipelines.doctor.cluster import Finding

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


@command("Store and cluster", 2)
def doctor(
    store: StoreOption = None,
    jobs_namespace: Annotated[
        str | None, typer.Option(help="Where trials would run as Jobs; by default this pod's or the kubeconfig's.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each check may take.")] = 30.0,
    installation: InstallationFile = None,
    host: Host = None,
    namespace: Namespace = None,
    token: Token = None,
    cookie: Cookie = None,
    username: Username = None,
    port_forward: PortForward = False,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    ca: Ca = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Check what a run on a cluster needs: Kubeflow, store, MLflow, rights, GPUs, quota, versions.

    One table with what to do. What is not set up is skipped; the exit code is 2 where something that is fails.

    Example: [b]podium doctor --store s3://bucket/experiments --port-forward[/b]
    """
    from podium.pipelines.doctor.cluster import (
        check_cluster,
        check_kubeflow,
        check_mlflow,
        check_store,
        check_versions,
        run_checks,
    )
    from podium.pipelines.installation import load_installation

    site = load_installation(installation)
    target = address(
        host=host,
        namespace=namespace,
        token=token,
        cookie=cookie,
        username=username,
        port_forward=port_forward,
        kubeflow_namespace=kubeflow_namespace,
        ca=ca,
        insecure=insecure,
    )
    place = store or site.store
    found = run_checks(
        [
            ("Versions", lambda: check_versions(site)),
            ("Kubeflow", lambda: check_kubeflow(target)),
            ("Store", lambda: check_store(place)),
            ("MLflow", lambda: check_mlflow(place)),
            ("Cluster", lambda: check_cluster(site, jobs_namespace)),
        ],
        seconds,
    )
    failed = any(each.status == "failed" for each in found)
    if as_json:
        result_json({"ok": not failed, "checks": [asdict(each) for each in found]})
    else:
        _print(found)
    if failed:
        raise typer.Exit(ExitCode.USER_ERROR)


def _print(found: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", "what to do", box=None, pad_edge=False)
    for each in found:
        table.add_row(each.check, Text(each.status, STYLES[each.status]), Text(each.found), Text(each.do))
    stdout().print(table)
