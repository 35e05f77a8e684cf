"""What the store knows of Kubeflow: which of our runs a run of Kubeflow's is, and why its last step failed.

Kubeflow's API names the step that failed and never why, and it can't tell a user's mistake from a lost machine. So a
step that refuses or fails leaves its words in the store; one that was killed leaves none, and that is the difference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from podium.components.study.layout import FAILURE, KUBEFLOW, KUBEFLOW_RUN, run_key
from podium.trainer.errors import NotFoundError
from podium.trainer.storage import Storage

RUN_TAG = "kubeflow.run_id"
"""Tag of runs and model versions in MLflow: the id of Kubeflow's run that made them."""


@dataclass(frozen=True)
class StepFailure:
    """Why a step failed, in its own words."""

    step: str
    kind: str
    """`user`: the user can mend it; `failed`: an error of ours that was foreseen; `crash`: one that was not."""
    message: str


def note_run(store: Storage, kubeflow_run: str, run_id: str) -> None:
    """Remember which run of ours Kubeflow's run is: the newest of Kubeflow's goes into the run's own folder too."""
    store.write_json(_key(kubeflow_run), {"run_id": run_id})
    store.child(run_key(run_id)).write_json(KUBEFLOW_RUN, {"run": kubeflow_run})


def run_of(store: Storage, kubeflow_run: str) -> str | None:
    """The id of our run, or None while prepare_data has not got so far."""
    found = _read(store, _key(kubeflow_run))
    return None if found is None else found.get("run_id")


def kubeflow_run_of(run: Storage) -> str | None:
    """Kubeflow's run that last executed the run in this folder; None for a run that Kubeflow has never seen."""
    found = _read(run, KUBEFLOW_RUN)
    return None if found is None else found.get("run")


def mlflow_tags(run: Storage) -> dict[str, str]:
    """Tags by which a run in MLflow names Kubeflow's run: none for a run that Kubeflow has never seen."""
    kubeflow_run = kubeflow_run_of(run)
    return {} if kubeflow_run is None else {RUN_TAG: kubeflow_run}


def note_failure(store: Storage, failure: StepFailure, *, run_id: str = "", kubeflow_run: str = "") -> None:
    """Leave why a step failed: with the run, or with Kubeflow's run where there is none of ours yet."""
    for key in _failure_keys(run_id, kubeflow_run):
        store.write_json(key, asdict(failure))


def clear_failure(store: Storage, *, run_id: str = "", kubeflow_run: str = "") -> None:
    """Forget an earlier failure: a step that is killed from now on must not seem to have said anything."""
    for key in _failure_keys(run_id, kubeflow_run):
        store.delete(key)


def failure_of(store: Storage, kubeflow_run: str) -> StepFailure | None:
    """Why the last step of Kubeflow's run failed; None where it said nothing: it was killed, or nothing failed."""
    for key in _failure_keys(run_of(store, kubeflow_run) or "", kubeflow_run):
        found = _read(store, key)
        if found is not None:
            return StepFailure(**found)
    return None


def _key(kubeflow_run: str) -> str:
    return f"{KUBEFLOW}/{kubeflow_run}.json"


def _failure_keys(run_id: str, kubeflow_run: str) -> list[str]:
    keys = [f"{run_key(run_id)}/{FAILURE}"] if run_id else []
    return keys + ([f"{KUBEFLOW}/{kubeflow_run}-{FAILURE}"] if kubeflow_run else [])


def _read(store: Storage, key: str) -> dict[str, Any] | None:
    try:
        found = store.read_json(key)
    except NotFoundError:
        return None
    return found if isinstance(found, dict) else None
