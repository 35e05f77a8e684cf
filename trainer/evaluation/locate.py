"""Find the weights that a command line names: a file, a run's folder, or a version in the model registry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.trainer.errors import CheckpointError, NotFoundError
from podium.trainer.storage import Storage, join_uri, open_storage, split_uri

_WHICH = {"final": "final-model", "best": "best-model"}
_SUBFOLDERS = ("", "checkpoints/")
"""Where a run used alone and a study's trial keep their weights."""


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """Weights on this machine, and what their run's folder says of them."""

    path: Path
    """`<name>.safetensors` with `<name>.json` beside it."""
    uri: str
    dataset: str | None = None
    """URI of the dataset that the run was trained on, where its folder is known."""
    run: str | None = None
    """Name of the run's folder."""


def locate_model(checkpoint: str, scratch: Path) -> LocatedModel:
    """The weights named by `checkpoint` (see `EvaluationRequest.checkpoint`), copied into `scratch` where remote.

    Raises CheckpointError naming what there is instead.
    """
    if checkpoint.startswith("models:/"):
        return _from_registry(checkpoint, scratch)
    if checkpoint.endswith(".pt"):
        raise CheckpointError(
            f"--checkpoint: takes model weights (model-*.safetensors, best-model, final-model) or a run's folder, "
            f"got a full checkpoint: {checkpoint}"
        )
    if checkpoint.endswith(".safetensors"):
        folder, name = split_uri(checkpoint)
        storage = open_storage(folder)
        _require(storage, name)
        return LocatedModel(_fetch(storage, name, scratch), join_uri(folder, name), **_about_run(folder))
    parent, last = split_uri(checkpoint)
    if last in _WHICH and not open_storage(checkpoint).list():
        return _from_run(parent, _WHICH[last], scratch)
    return _from_run(checkpoint, _WHICH["final"], scratch)


def _from_run(uri: str, which: str, scratch: Path) -> LocatedModel:
    storage = open_storage(uri)
    for subfolder in _SUBFOLDERS:
        key = f"{subfolder}{which}.safetensors"
        if storage.exists(key):
            return LocatedModel(_fetch(storage, key, scratch), join_uri(storage.uri, key), **_about_run(storage.uri))
    there = [key for key in storage.list() if key.endswith(".safetensors")]
    found = f"it has {', '.join(there)}" if there else "it has no .safetensors file"
    raise CheckpointError(f"--checkpoint: {storage.uri} must be a run's folder with {which}.safetensors, but {found}")


def _require(storage: Storage, name: str) -> None:
    for key in (name, name.removesuffix(".safetensors") + ".json"):
        if not storage.exists(key):
            raise CheckpointError(f"--checkpoint: {join_uri(storage.uri, key)} is not there")


def _fetch(storage: Storage, key: str, scratch: Path) -> Path:
    sidecar = key.removesuffix(".safetensors") + ".json"
    local = storage.local_path(key)
    if local is not None:
        return local
    target = scratch / Path(key).name
    storage.download(key, target)
    storage.download(sidecar, target.with_suffix(".json"))
    return target


def _about_run(folder: str) -> dict[str, Any]:
    """`dataset` and `run` of the run whose weights lie in `folder` or in its `checkpoints/`; empty where there is none.

    A folder of weights alone is no run: its `config.json`, if any, is not a RunSpec.
    """
    if split_uri(folder)[1] == "checkpoints":
        folder = split_uri(folder)[0]
    try:
        spec = open_storage(folder).read_json("config.json")
    except NotFoundError:
        return {}
    if not isinstance(spec, dict) or "dataset" not in spec:
        return {}
    return {"dataset": spec["dataset"], "run": split_uri(folder)[1]}


def _from_registry(uri: str, scratch: Path) -> LocatedModel:
    try:
        import mlflow
    except ImportError:
        raise CheckpointError(f"--checkpoint: {uri} needs mlflow, which is not installed") from None
    from mlflow.exceptions import MlflowException

    from podium.trainer.mlflow_server import client, mlflow_uri

    tracking_uri = mlflow_uri("runs")
    client(tracking_uri)  # brings a SQLite file up to date, and says nothing about it
    # or MLflow looks for the name in a database of the working directory, which it makes for that
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch), tracking_uri=tracking_uri)
    except MlflowException as error:
        raise CheckpointError(f"--checkpoint: {uri} can't be fetched: {error}") from None
    found = [path for path in sorted(Path(folder).rglob("*.safetensors")) if path.with_suffix(".json").exists()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"--checkpoint: {uri} must hold one model with its .json beside it, got {names}")
    return LocatedModel(found[0], uri)
