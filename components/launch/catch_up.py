"""What MLflow could not take while a stage ran, sent by the steps that come after it.

A stage does not wait for a server that is away: its verdict would come late. So each later step that runs while nobody
else writes looks which ended trials are not wholly in MLflow, and sends those. Where there is none, MLflow is not even
imported.
"""

from __future__ import annotations

from collections.abc import Iterator

from podium.components.launch.tracker import Sender
from podium.components.study.layout import TrialKey
from podium.components.study.run import Run
from podium.trainer.mlflow_server import artifact_root, mlflow_uri


def catch_up(run: Run) -> None:
    """Send what MLflow lacks of the run's ended trials. One that is still away is logged and left for the next step.

    Raises StorageError where the store can't be read.
    """
    uri = mlflow_uri(run.store_uri)
    for stage in run.stages:
        unsent = [key.folder for key in _ended(run, stage) if not is_sent(run, key.folder, uri)]
        if unsent:
            artifacts = artifact_root(run.store_uri)
            Sender(run.uri, stage, f"trials/{stage}", run.study.name, run.id, uri, artifacts).send(unsent)


def _ended(run: Run, stage: str) -> Iterator[TrialKey]:
    """The stage's trials that ran here and ended; a result that was taken from another run is in MLflow as that's."""
    for trial in run.trials(stage):
        if run.result(trial.key) is not None and run.storage.exists(f"{trial.key.folder}/config.json"):
            yield trial.key


def is_sent(run: Run, folder: str, uri: str) -> bool:
    """Whether the server at `uri` has the trial in this folder: with its result, where it has ended."""
    state = run.read_json(f"{folder}/sync.json") or {}
    ended = run.storage.exists(f"{folder}/result.json")
    return state.get("tracking_uri") == uri and bool(state.get("result_sha256") if ended else state.get("run_id"))
