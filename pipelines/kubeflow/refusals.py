"""What Kubeflow's API answers when it does not do as asked, as one sentence that says what to do."""

from __future__ import annotations

import json
from typing import Any

from podium.pipelines.kubeflow.address import Address
from podium.trainer.errors import PodiumError, UserError

SERVER_ERRORS = 500


class UnreachableError(UserError):
    """Nobody answers at the address."""


class KubeflowError(PodiumError):
    """Kubeflow's API failed by no mistake of the user's."""


class RefusedError(UserError):
    """Kubeflow's API refused a request; `status` is its HTTP status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def refusal(error: Any, address: Address, doing: str) -> PodiumError:
    """The error to raise for a `kfp_server_api.ApiException`."""
    where, said = address.host or "Kubeflow", _said(error)
    if error.status == 0:  # the generated client's way of passing on an error of TLS
        return UnreachableError(
            f"{where} can't be reached: {first_line(error.reason)}; for a private authority give --ca"
        )
    if error.status == 401:
        how = "cookie" if address.cookie else "token"
        had = address.token or address.token_file or address.cookie
        what = f"the {how} has expired or is not accepted: get a new one" if had else "it wants to know who asks"
        return RefusedError(f"{where} refused {doing}: 401: {what} (--token, --cookie or --username){said}", 401)
    if error.status == 403:
        place = f" in namespace {address.namespace}" if address.namespace else ""
        advice = "it is another's or does not exist" if address.namespace else "give --namespace"
        return RefusedError(f"{where} refused {doing}{place}: 403: you may not do that there: {advice}{said}", 403)
    if error.status >= SERVER_ERRORS:
        return KubeflowError(f"{where} failed at {doing}: {error.status} {error.reason}{said}")
    return RefusedError(f"{where} refused {doing}: {error.status} {error.reason}{said}", error.status)


def unreachable(error: object, address: Address) -> UnreachableError:
    """The error to raise where there is nobody to talk to."""
    reason = first_line(getattr(error, "reason", error))
    return UnreachableError(f"{address.host} can't be reached: {reason}")


def no_api(address: Address) -> UserError:
    """The error to raise where a page answers instead of the API: a login page, or another server."""
    return UserError(
        f"{address.host} answers with a web page, not with Kubeflow's API: sign in (--token, --cookie or --username), "
        "or give the API's address, which in a whole Kubeflow ends with /pipeline"
    )


def first_line(error: object) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or ["no reason given"])[0]


def _said(error: Any) -> str:
    """The server's own words, from the shapes in which KFP 2 sends them."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return ""
    if not isinstance(body, dict):
        return ""
    for key in ("error_message", "message", "error"):
        if isinstance(body.get(key), str) and body[key]:
            return f" ({first_line(body[key])})"
    return ""
