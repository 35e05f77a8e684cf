"""A finalist as a new version of a registered MLflow model: code, weights, tokenizer and verdict, no pickle."""

from __future__ import annotations

import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from podium.components.study.finalists import Finalist
from podium.components.study.layout import verdict_key
from podium.components.study.run import Run
from podium.trainer.mlflow_server import artifact_root, client, ensure_parent
from podium.trainer.storage import open_storage

CODE = Path(__file__).with_name("served_model.py")
NEEDED = ("podium", "torch", "tokenizers", "safetensors", "numpy", "pandas")
"""What the model imports when it is loaded. Stated: to find that out MLflow would load the model in a process apart."""


def log_version(run: Run, winner: Finalist, tracking_uri: str, tags: Mapping[str, str]) -> str:
    """Store the model in the run's MLflow run and register it; the number of the new version."""
    import mlflow

    parent = ensure_parent(
        tracking_uri,
        run.study.name,
        key=run.id,
        name=run.id,
        tags={"study": run.study.name, "run": run.id},
        artifacts=artifact_root(run.store_uri),
    )
    with tempfile.TemporaryDirectory(prefix="podium-register-") as scratch, _quiet():
        artifacts = _fetch(run, winner, Path(scratch))
        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_registry_uri(tracking_uri)
        with mlflow.start_run(run_id=parent):
            info = mlflow.pyfunc.log_model(
                name=f"model-{winner.variant}".replace(".", "-"),
                python_model=str(CODE),
                artifacts={name: str(path) for name, path in artifacts.items()},
                signature=_signature(),
                input_example=_example(),
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in NEEDED],
            )
    registry = client(tracking_uri)
    if not any(found.name == run.study.name for found in registry.search_registered_models()):
        registry.create_registered_model(run.study.name, description=run.study.question)
    made = registry.create_model_version(
        run.study.name,
        source=info.model_uri,
        run_id=parent,
        model_id=info.model_id,
        tags=dict(tags),
        description=tags["podium.reason"],
    )
    return str(made.version)


def _fetch(run: Run, winner: Finalist, scratch: Path) -> dict[str, Path]:
    """The model's files on this machine, under the names that MLflow stores them by."""
    trial = run.storage.child(winner.trial.key.folder)
    sidecar = winner.model_key.removesuffix(".safetensors") + ".json"
    wanted = {
        "weights": (trial, winner.model_key),
        "config": (trial, sidecar),
        "tokenizer": (open_storage(winner.trial.dataset_uri), "tokenizer.json"),
        "verdict": (run.storage, verdict_key(run.stages[-1])),
    }
    found = {}
    for name, (storage, key) in wanted.items():
        found[name] = scratch / ("verdict.json" if name == "verdict" else Path(key).name)
        storage.download(key, found[name])
    return found


def _signature() -> object:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("string", "text")]),
        outputs=Schema([ColSpec("double", "loss"), ColSpec("long", "tokens"), ColSpec("double", "bits_per_byte")]),
    )


def _example() -> object:
    import pandas as pd

    return pd.DataFrame({"text": ["The cat sat on the mat."]})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what MLflow says of every model: hints for its users, and warnings of libraries it calls."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
