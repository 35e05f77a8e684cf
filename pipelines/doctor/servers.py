"""The servers that a run talks to: Kubeflow, the store, MLflow."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

from podium.pipelines.doctor.finding import Finding
from podium.pipelines.kubeflow.address import HOST, Address, is_given
from podium.pipelines.kubeflow.api import open_kubeflow
from podium.trainer.errors import PodiumError, UserError
from podium.trainer.mlflow_server import mlflow_uri
from podium.trainer.storage import normalise_uri, open_storage

TIMEOUT_SECONDS = 10.0
OLDEST_MLFLOW = (3, 5)


def check_kubeflow(address: Address) -> Iterator[Finding]:
    """Whether Kubeflow's API answers, takes who asks, and knows the namespace."""
    name = "Kubeflow"
    if not is_given(address):
        yield Finding(name, "skipped", "no address", f"give --host, --port-forward or {HOST} to check it")
        return
    try:
        with open_kubeflow(address) as kubeflow:
            users = "many users" if kubeflow.multi_user() else "one user"
            kubeflow.check_namespace()
            kubeflow.experiment_names()
            where = f" as {kubeflow.address.namespace}" if kubeflow.address.namespace else ""
            yield Finding(name, "ok", f"{kubeflow.address.host} answers{where} ({users})")
    except UserError as error:
        yield Finding(name, "failed", str(error), "mend what the message names, then podium doctor again")


def check_store(store: str | None) -> Iterator[Finding]:
    """Whether the store can be written, honours create-once, and forgets what is deleted."""
    name = "Store"
    if not store:
        yield Finding(name, "skipped", "no store is named", "give --store, or store: in the installation's file")
        return
    where = normalise_uri(store)
    try:
        storage = open_storage(where)
        storage.probe()
        key = f"doctor-{uuid.uuid4().hex}"
        once = storage.create(key, b"1"), storage.create(key, b"2")
        kept = storage.read_bytes(key)
        storage.delete(key)
    except PodiumError as error:
        # the message names the variable or the server's own words
        yield Finding(name, "failed", str(error), "check the endpoint, the keys (AWS_…) and the bucket's policy")
        return
    if once != (True, False) or kept != b"1":
        found = f"{where} lets an object be created twice, so that ledger entries would be lost"
        yield Finding(name, "failed", found, "use a server that honours If-None-Match: * (S3, MinIO, versitygw)")
        return
    yield Finding(name, "ok", f"{where}: written, created once, read, deleted")
    if not where.startswith("s3://"):
        yield Finding(name, "warning", "a folder serves this machine alone", "a cluster needs s3://bucket/prefix")


def check_mlflow(store: str | None) -> Iterator[Finding]:
    """Whether MLflow answers, at which version, and takes who asks."""
    name = "MLflow"
    uri = mlflow_uri(store or "runs")
    if not uri.startswith(("http://", "https://")):
        yield Finding(name, "ok", f"{uri} (a file of this machine; MLFLOW_TRACKING_URI names a server)")
        return
    try:
        version = _get(f"{uri.rstrip('/')}/version")
        _get(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", errors="replace")
        yield Finding(name, "failed", f"{uri}: {error.code} {error.reason}", _mlflow_advice(error.code, said))
        return
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        yield Finding(name, "failed", f"{uri} can't be reached: {reason}", "check the address and the NetworkPolicies")
        return
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if number < OLDEST_MLFLOW:
        wanted = ".".join(map(str, OLDEST_MLFLOW))
        yield Finding(name, "warning", f"{uri}: version {version}", f"upgrade the server to {wanted} or newer")
    else:
        yield Finding(name, "ok", f"{uri}: version {version}")


def _mlflow_advice(code: int, said: str) -> str:
    if code == 403 and "host" in said.lower():
        return "the server refuses this Host: add it to MLFLOW_SERVER_ALLOWED_HOSTS, with and without its port"
    if code in (401, 403):
        return "give MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return "is this the address of an MLflow tracking server?"


def _get(url: str) -> str:
    request = urllib.request.Request(url)  # noqa: S310  http and https alone come here
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        import base64

        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        text: str = answer.read().decode("utf-8", errors="replace")
    if url.endswith("/version"):
        return text.strip()
    json.loads(text)
    return text
