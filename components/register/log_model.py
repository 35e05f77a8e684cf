"""A finalist as a new version of a registered MLflow model: code, weights, tokenizer and verdict, no pickle."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from podium.components.study.finalists import Finalist
from podium.components.study.kubeflow import mlflow_tags
from podium.components.study.layout import verdict_key
from podium.components.study.run import Run
from podium.trainer.data.manifest import TOKENIZER
from podium.trainer.mlflow_server import artifact_root, client, ensure_parent
from podium.trainer.storage import open_storage

CODE = Path(__file__).with_name("served_model.py")
NEEDED = ("podium", "tokenizers", "safetensors", "numpy", "pandas")
"""What the model imports when it is loaded, beside the PyTorch that trained it. Stated: to find that out MLflow would
load the model in a process apart."""


def log_version(run: Run, winner: Finalist, tracking_uri: str, tags: Mapping[str, str]) -> str:
    """Store the model in MLflow beside the run and register it; the number of the new version.

    MLflow's own `log_model` would load the model to try its example: PyTorch in a step that needs none.
    """
    with tempfile.TemporaryDirectory(prefix="podium-register-") as scratch, _quiet():
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        tracking = client(tracking_uri)
        top = run_of_study(run, tracking_uri)
        experiment = tracking.get_run(top).info.experiment_id
        stored = tracking.create_logged_model(
            experiment, f"model-{winner.variant}".replace(".", "-"), source_run_id=top, tags=dict(tags)
        )
        folder = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=Model(artifact_path=stored.artifact_location, model_uuid=stored.model_id, run_id=top),
            python_model=str(CODE),
            artifacts={name: str(path) for name, path in _fetch(run, winner, Path(scratch)).items()},
            signature=_signature(),
            input_example=_example(),
            pip_requirements=_requirements(winner),
        )
        tracking.log_model_artifacts(stored.model_id, str(folder))
        tracking.finalize_logged_model(stored.model_id, "READY")
        tracking.log_outputs(top, [LoggedModelOutput(stored.model_id, step=0)])
        if not tracking.search_registered_models(f"name = '{run.study.name}'"):
            tracking.create_registered_model(run.study.name, description=run.study.question)
        made = tracking.create_model_version(
            run.study.name,
            source=stored.artifact_location,
            run_id=top,
            model_id=stored.model_id,
            tags=dict(tags),
            description=tags["podium.reason"],
        )
    return str(made.version)


def run_of_study(run: Run, tracking_uri: str) -> str:
    """The MLflow run that holds all of this run's trials; its id."""
    return ensure_parent(
        tracking_uri,
        run.study.name,
        key=run.id,
        name=run.id,
        tags={"study": run.study.name, "run": run.id, **mlflow_tags(run.storage)},
        artifacts=artifact_root(run.store_uri),
    )


def _fetch(run: Run, winner: Finalist, scratch: Path) -> dict[str, Path]:
    """The model's files on this machine, under the names that MLflow stores them by."""
    trial = run.storage.child(winner.trial.key.folder)
    sidecar = winner.model_key.removesuffix(".safetensors") + ".json"
    wanted = {
        "weights": (trial, winner.model_key),
        "config": (trial, sidecar),
        "verdict": (run.storage, verdict_key(run.stages[-1])),
    }
    data = open_storage(winner.trial.dataset_uri)
    if data.exists(TOKENIZER):  # shards that somebody else tokenised come without
        wanted["tokenizer"] = (data, TOKENIZER)
    found = {}
    for name, (storage, key) in wanted.items():
        found[name] = scratch / ("verdict.json" if name == "verdict" else Path(key).name)
        storage.download(key, found[name])
    return found


def _requirements(winner: Finalist) -> list[str]:
    """The model's packages with their versions: PyTorch as it trained the model, since this step's image has none."""
    versions = winner.result.versions
    # without the build (`+cu128`), which is no version of the package index
    torch = versions.torch.partition("+")[0] if versions and versions.torch else ""
    needed = (*NEEDED, "transformers") if winner.trial.config.model.family == "gpt2" else NEEDED
    installed = [f"{name}=={importlib.metadata.version(name)}" for name in needed]
    return [*installed, f"torch=={torch}" if torch else "torch"]


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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
