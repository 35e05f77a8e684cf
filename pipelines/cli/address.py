"""Options by which commands reach Kubeflow: the same words in each, and the same variables of the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from podium.pipelines.kubeflow.address import Address

PANEL = "Kubeflow, and who asks"

Host = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_ENDPOINT",
        rich_help_panel=PANEL,
        help="Kubeflow's API: https://kubeflow.example/pipeline, or a KFP address; by default the cluster's own.",
    ),
]
Ui = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_UI_ENDPOINT", rich_help_panel=PANEL, help="Kubeflow's pages for links, if elsewhere."
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_KFP_NAMESPACE", rich_help_panel=PANEL, help="Your profile's namespace, where Kubeflow has many."
    ),
]
Token = Annotated[
    str | None, typer.Option(envvar="PODIUM_KFP_TOKEN", rich_help_panel=PANEL, help="Bearer token of the API.")
]
Cookie = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_KFP_COOKIE", rich_help_panel=PANEL, help="Session's cookie, NAME=VALUE, as the browser has it."
    ),
]
Username = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_KFP_USERNAME",
        rich_help_panel=PANEL,
        help="Sign in at Kubeflow's login page (Dex); the password is in PODIUM_KFP_PASSWORD, else it is asked for.",
    ),
]
PortForward = Annotated[
    bool,
    typer.Option("--port-forward", rich_help_panel=PANEL, help="Reach the API by kubectl and the kubeconfig."),
]
KubeflowNamespace = Annotated[str, typer.Option(rich_help_panel=PANEL, help="Where Kubeflow Pipelines itself runs.")]
Ca = Annotated[
    str | None, typer.Option("--ca", rich_help_panel=PANEL, help="File of the authority that signed the host's TLS.")
]
Insecure = Annotated[bool, typer.Option("--insecure", rich_help_panel=PANEL, help="Take any TLS certificate.")]
InstallationFile = Annotated[
    str | None,
    typer.Option(
        "--installation",
        envvar="PODIUM_INSTALLATION",
        help="YAML of what an installation sets: store, images, pull settings, GPU classes; the chart writes one.",
    ),
]


def address(
    *,
    host: str | None,
    ui: str | None = None,
    namespace: str | None = None,
    token: str | None = None,
    cookie: str | None = None,
    username: str | None = None,
    port_forward: bool = False,
    kubeflow_namespace: str = "kubeflow",
    ca: str | None = None,
    insecure: bool = False,
) -> Address:
    """The address that the options give; asks a person for a password that the environment does not have."""
    import os
    import sys

    from podium.pipelines.kubeflow.address import PASSWORD, Address

    password = os.environ.get(PASSWORD)
    if username and not password and sys.stdin.isatty():
        password = typer.prompt(f"Password of {username}", hide_input=True, err=True)
    return Address(
        # an address in the environment gives way to the option, which says what is wanted now
        host=None if port_forward and host == os.environ.get("KF_PIPELINES_ENDPOINT") else host,
        ui=ui,
        namespace=namespace,
        token=token,
        cookie=cookie,
        username=username,
        password=password,
        port_forward=port_forward,
        kubeflow_namespace=kubeflow_namespace,
        ca=ca,
        insecure=insecure,
    )
