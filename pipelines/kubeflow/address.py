"""Where Kubeflow's API is and who asks: what a command line, a notebook or a pod's environment says about it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from podium.trainer.trial.errors import Problem, UserError

HOST = "KF_PIPELINES_ENDPOINT"
"""Environment: the address of Kubeflow's API; KFP's own name for it."""
UI = "KF_PIPELINES_UI_ENDPOINT"
"""Environment: the address of Kubeflow's pages, where it is another; KFP's own name too."""
NAMESPACE = "PODIUM_KFP_NAMESPACE"
TOKEN = "PODIUM_KFP_TOKEN"  # noqa: S105  a variable's name
COOKIE = "PODIUM_KFP_COOKIE"
USERNAME = "PODIUM_KFP_USERNAME"
PASSWORD = "PODIUM_KFP_PASSWORD"  # noqa: S105
TOKEN_FILES = ("PODIUM_KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH")
"""Environment: a file with the token, read anew for each request, since the kubelet renews it. KFP's own name last."""
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow puts a pod's token for its API, with a PodDefault or a projected volume."""
IN_CLUSTER = "http://ml-pipeline.{namespace}.svc.cluster.local:8888"


@dataclass(frozen=True)
class Address:
    """How to reach Kubeflow. What is left out is taken from the environment by `resolve`."""

    host: str | None = None
    """`https://kubeflow.example/pipeline`, or None for the environment's or the cluster's own."""
    ui: str | None = None
    """Where its pages are, for links; None for the host's own."""
    namespace: str | None = None
    """The user's namespace (Kubeflow profile), where Kubeflow has many users; None where it has one."""
    token: str | None = None
    token_file: Path | None = None
    cookie: str | None = None
    """The session's cookie as `name=value`, as a browser sends it."""
    username: str | None = None
    """With `password`: sign in at Kubeflow's login page (Dex), as a browser would."""
    password: str | None = None
    port_forward: bool = False
    """Reach it through the Kubernetes API server, with kubectl and the kubeconfig."""
    kubeflow_namespace: str = "kubeflow"
    """Where Kubeflow Pipelines itself runs."""
    ca: str | None = None
    """File of the authority that signed the host's certificate."""
    insecure: bool = False
    """Take any certificate."""


def resolve(address: Address | None = None) -> Address:
    """The address with what the environment says filled in. Raises UserError for options that exclude each other."""
    given = address or Address()
    found = Address(
        host=_with_scheme(given.host or os.environ.get(HOST)),
        ui=_with_scheme(given.ui or os.environ.get(UI)),
        namespace=given.namespace or os.environ.get(NAMESPACE) or None,
        token=given.token or os.environ.get(TOKEN) or None,
        token_file=given.token_file or _token_file(),
        cookie=given.cookie or os.environ.get(COOKIE) or None,
        username=given.username or os.environ.get(USERNAME) or None,
        password=given.password or os.environ.get(PASSWORD) or None,
        port_forward=given.port_forward,
        kubeflow_namespace=given.kubeflow_namespace,
        ca=given.ca,
        insecure=given.insecure,
    )
    problems = []
    if given.port_forward and given.host:
        problems.append(Problem("--port-forward", f"is for when no address is known; got --host {given.host} as well"))
    if bool(found.username) != bool(found.password):
        problems.append(
            Problem("--username", f"needs a password ({PASSWORD} in the environment), and a password a username")
        )
    if problems:
        raise UserError(problems)
    if found.host or found.port_forward:
        return found
    return _in_cluster(found)


def is_given(address: Address) -> bool:
    """Whether somebody has said where Kubeflow is."""
    return bool(address.port_forward or address.host or os.environ.get(HOST))


def _in_cluster(address: Address) -> Address:
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise UserError(
            Problem(
                "--host",
                f"where is Kubeflow's API? Give its address (or {HOST}), or --port-forward to reach it by kubectl; "
                "only inside a cluster it is found by itself",
            )
        )

    return replace(address, host=IN_CLUSTER.format(namespace=address.kubeflow_namespace))


def _token_file() -> Path | None:
    for name in TOKEN_FILES:
        if os.environ.get(name):
            return Path(os.environ[name])
    return POD_TOKEN if POD_TOKEN.exists() else None


def _with_scheme(host: str | None) -> str | None:
    if not host:
        return None
    host = host.rstrip("/")
    return host if host.startswith(("http://", "https://")) else f"https://{host}"
