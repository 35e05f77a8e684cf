"""What the step register does: the winner's model goes into MLflow's registry under the study's name.

`champion` is the alias only of what a verdict has proven; anything else is `candidate`, and leaves the champion be.
Earlier versions stay. `registration.json` is written last: with it the step does nothing, without it a version that an
earlier attempt made is found by its tags and used.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from podium.components.study.layout import REGISTRATION, mlflow_tags, verdict_key
from podium.components.study.run import Finalist, Run, finalists, last_verdict
from podium.components.study.verdict import Verdict
from podium.trainer.builtin.data.manifest import TOKENIZER
from podium.trainer.trial.errors import PodiumError
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.storage import open_storage
from podium.trainer.trial.sync import artifact_root, client, ensure_parent, mlflow_uri

# A finalist as a new version of a registered MLflow model: code, weights, tokenizer and verdict, no pickle.

CODE = Path(__file__).with_name("served_model.py")
NEEDED = ("podium", "tokenizers", "safetensors", "numpy", "pandas")
"""What the model imports when it is loaded, beside the PyTorch that trained it. Stated: to find that out MLflow would
load the model in a process apart."""


def log_version(run: Run, winner: Finalist, tracking_uri: str, tags: Mapping[str, str]) -> str:
    """Store the model in MLflow beside the run and register it; the number of the new version.

    MLflow's own `log_model` would load the model to try its example: PyTorch in a step that needs none.
    """
    with scratch_folder("register") as scratch, _quiet():
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
    needed = (*NEEDED, *winner.trial.config.model.libraries)
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


CHAMPION, CANDIDATE = "champion", "candidate"
MOST_TAG_CHARACTERS = 5000


def register(run: str, store: str) -> str:
    """Register the winner of a run's last verdict; `models:/<study>@<alias>`.

    Raises PodiumError where there is no winner with a model, or MLflow can't be reached: run it again.
    """
    opened = Run.open(store, run)
    done = opened.read_json(REGISTRATION)
    if done is not None:
        return str(done["uri"])
    verdict, winner = _winner(opened)
    tracking_uri = mlflow_uri(store)
    try:
        record = _register(opened, verdict, winner, tracking_uri)
    except PodiumError:
        raise
    except Exception as error:
        # MLflow raises what its transport, database and artifact store raise
        raise PodiumError(
            f"the model could not be registered with MLflow at {tracking_uri}: {type(error).__name__}: {error}"
        ) from error
    opened.ledger.append("registration", f"{record['model']}/{record['version']}", **record)
    opened.storage.write_json(REGISTRATION, record)
    print(f"{winner.variant} is registered as {record['uri']}, version {record['version']}", flush=True)
    return str(record["uri"])


def _winner(run: Run) -> tuple[Verdict, Finalist]:
    """The last verdict, and the finalist that it names; under a policy that ranks nothing, the first one."""
    verdict = last_verdict(run)
    if verdict is None or verdict.decision != "promote":
        said = "there is none" if verdict is None else f"it is {verdict.decision}"
        raise PodiumError(f"run {run.id}: nothing to register before the last verdict promotes a winner; {said}")
    able = finalists(run)
    found = next((each for each in able if verdict.winner in (None, each.variant)), None)
    if found is None:
        raise PodiumError(f"run {run.id}: the winner {verdict.winner} has no trained model")
    return verdict, found


def _register(run: Run, verdict: Verdict, winner: Finalist, tracking_uri: str) -> dict[str, Any]:
    registry, name = client(tracking_uri), run.study.name
    alias = CHAMPION if verdict.proven else CANDIDATE
    tags = lineage(run, verdict, winner)
    version = _existing(registry, name, tags) or log_version(run, winner, tracking_uri, tags)
    displaced = _displaced(registry, name, alias, version, tags)
    registry.set_registered_model_alias(name, alias, version)
    return {
        "variant": winner.variant,
        "proven": verdict.proven,
        "claim": verdict.claim,
        "alias": alias,
        "metric": verdict.metric,
        "value": getattr(winner.result, verdict.metric),
        "loss": winner.loss,
        "seed": winner.trial.seed,
        "model": name,
        "version": version,
        "uri": f"models:/{name}@{alias}",
        "tracking_uri": tracking_uri,
        "weights": f"{winner.trial.key.folder}/{winner.model_key}",
        "dataset": winner.trial.dataset_uri,
        "displaced": displaced,
    }


def lineage(run: Run, verdict: Verdict, winner: Finalist) -> dict[str, str]:
    """Tags of the model version: what it was made of and why it was chosen."""
    versions = winner.result.versions
    brief = verdict.model_dump_json(exclude={"results", "parameters"})
    tags = {
        "study": run.study.name,
        "study_hash": run.registered.study_hash,
        "profile": run.study.profile,
        "run_id": run.id,
        "stage": verdict.stage,
        "variant": winner.variant,
        "seed": str(winner.trial.seed),
        "fingerprint": winner.trial.fingerprint,
        "data_fingerprint": run.dataset_fingerprint(winner.trial.variant),
        "metric": verdict.metric,
        "value": repr(getattr(winner.result, verdict.metric)),
        "loss": repr(winner.loss),
        "proven": str(verdict.proven).lower(),
        "claim": verdict.claim,
        "reason": verdict.reason,
        # a verdict over hundreds of arms is longer than a tag can be; the model carries it whole as verdict.json
        "verdict": brief if len(brief) <= MOST_TAG_CHARACTERS else f"{run.uri}/verdicts/{verdict.stage}.json",
        "commit": (versions.commit if versions else None) or "unknown",
        "image": (versions.image if versions else None) or "none",
        "podium": (versions.podium if versions else None) or "unknown",
    }
    ours = {f"podium.{key}": value[:MOST_TAG_CHARACTERS] for key, value in tags.items()}
    return ours | mlflow_tags(run.storage)


def _existing(registry: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version that an earlier attempt at this very registration made, if it came so far."""
    # the reason tells an amended verdict from the one before: each has a version with its own lineage
    identity = ("podium.run_id", "podium.variant", "podium.seed", "podium.fingerprint", "podium.reason")
    for version in registry.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(key) == tags[key] for key in identity):
            return str(version.version)
    return None


def _displaced(registry: Any, name: str, alias: str, version: str, tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The version that had the alias before this one, if any: noted on this one before it takes the alias.

    With the difference in the metric, below 0 if this one is better; None where the two do not compare, by another
    metric or on other data.
    """
    noted = registry.get_model_version(name, version).tags.get(f"podium.displaced_{alias}")
    before = noted or registry.get_registered_model(name).aliases.get(alias)
    if before is None or str(before) == version:
        return None
    theirs = registry.get_model_version(name, str(before)).tags
    difference = _difference(tags, theirs)
    if noted is None:
        registry.set_model_version_tag(name, version, f"podium.displaced_{alias}", str(before))
        registry.set_model_version_tag(name, version, f"podium.displaced_{alias}_difference", repr(difference))
    kept = {key: theirs.get(f"podium.{key}") for key in ("run_id", "variant", "value")}
    return {"version": str(before), **kept, "difference": difference}


def _difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> float | None:
    alike = all(ours.get(f"podium.{key}") == theirs.get(f"podium.{key}") for key in ("metric", "data_fingerprint"))
    values = [tags.get("podium.value", "None") for tags in (ours, theirs)]
    if not alike or "None" in values:
        return None
    return float(values[0]) - float(values[1])
