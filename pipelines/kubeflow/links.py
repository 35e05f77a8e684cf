"""Links to Kubeflow's pages, which depend on how it is installed."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from podium.pipelines.kubeflow.address import Address

BEHIND_DASHBOARD = "/pipeline"
"""Path of the API and the pages in a whole Kubeflow, whose dashboard shows them in a frame under `/_/pipeline/`."""


def run_link(address: Address, run_id: str) -> str | None:
    """The run's page; None where only the API's address is known and no browser could open it."""
    return _link(address, f"/runs/details/{run_id}")


def pipeline_link(address: Address, pipeline_id: str, version_id: str) -> str | None:
    """The page of a pipeline's version, from which a run is created."""
    return _link(address, f"/pipelines/details/{pipeline_id}/version/{version_id}")


def _link(address: Address, page: str) -> str | None:
    base = address.ui or address.host
    if base is None or (address.ui is None and (address.port_forward or _is_inside(base))):
        return None
    if base.endswith(BEHIND_DASHBOARD) and address.namespace:
        root = base.removesuffix(BEHIND_DASHBOARD).removesuffix("/_")
        return f"{root}/_{BEHIND_DASHBOARD}/?ns={quote(address.namespace)}#{page}"
    return f"{base}/#{page}"


def _is_inside(host: str) -> bool:
    """Whether the address is a Service's, which only pods can open."""
    name = urlsplit(host).hostname or ""
    return name.endswith((".svc", ".svc.cluster.local")) or ".svc." in name
