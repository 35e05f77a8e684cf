"""Where things lie in the store: keys relative to the store's root, and to a run's folder.

<store>/data/<fingerprint>/                              prepared data, manifest.json last
<store>/runs/<run id>/study.yaml                         as submitted and resolved: the pre-registration
                      source.json  git_diff.patch        the checkout that it was made from, and what was changed there
                      lease.json  ledger/<n>-<id>.json   trials/<stage>/<variant>/seed-<n>/
                      jobs.json  waiting.json            where its Jobs run, what its trials wait for
                      modules/<sha256>.py                a user's own code that the study ships, for reading
                      verdicts/<stage>.json  evaluation/<variant>/  report/  logs/
                      kubeflow.json  failure.json        Kubeflow's newest run of it, why its last step failed
<store>/kubeflow/<Kubeflow's run>.json                   which run of ours that is
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from podium.trainer.trial.storage import Storage

RUNS = "runs"
DATA = "data"
STUDY = "study.yaml"
TRIALS = "trials"
LOGS = "logs"
REPORT = "report"
REPORT_PAGE = f"{REPORT}/index.html"
PIPELINE_LOG = f"{LOGS}/pipeline.log"
EVALUATION = "evaluation"
LEASE = "lease.json"
ATTEMPTS = "attempts.json"
CANCEL = "cancel.json"
JOBS = "jobs.json"
WAITING = "waiting.json"
SHAKEDOWN = "shakedown.json"
REGISTRATION = "registration.json"
KUBEFLOW = "kubeflow"
KUBEFLOW_RUN = "kubeflow.json"
FAILURE = "failure.json"
SOURCE = "source.json"
MODULES = "modules"
SOURCE_DIFF = "git_diff.patch"


def run_key(run_id: str) -> str:
    """The run's folder, from the store's root."""
    return f"{RUNS}/{run_id}"


def data_key(fingerprint: str) -> str:
    """The prepared dataset's folder, from the store's root."""
    return f"{DATA}/{fingerprint}"


@dataclass(frozen=True)
class TrialKey:
    """Which trial: its folder is derived from this and from nothing else."""

    stage: str
    variant: str
    seed: int
    fallback: str | None = None

    @property
    def folder(self) -> str:
        """The trial's folder, from the run's."""
        suffix = f"-{self.fallback}" if self.fallback else ""
        return f"{TRIALS}/{self.stage}/{self.variant}/seed-{self.seed}{suffix}"

    def file(self, name: str) -> str:
        """A file of the trial's folder, from the run's."""
        return f"{self.folder}/{name}"

    @property
    def name(self) -> str:
        """`ranking/emb25/seed-42`: what logs and tables call it."""
        return self.folder.removeprefix(f"{TRIALS}/")

    @property
    def log(self) -> str:
        """The trial's log, from the run's folder."""
        return f"{LOGS}/{self.stage}/{self.variant}-seed-{self.seed}{'-' + self.fallback if self.fallback else ''}.log"


def trials_key(stage: str) -> str:
    """The folder of the stage's trials, from the run's folder."""
    return f"{TRIALS}/{stage}"


def verdict_key(stage: str) -> str:
    """The stage's final verdict, from the run's folder."""
    return f"verdicts/{stage}.json"


def evaluation_key(variant: str) -> str:
    """The folder of a finalist's evaluation, from the run's folder."""
    return f"{EVALUATION}/{variant}"


# What the store knows of Kubeflow: which of our runs a run of Kubeflow's is, and why its last step failed.
#
# Kubeflow's API names the step that failed and never why, and it can't tell a user's mistake from a lost machine. So a
# step that refuses or fails leaves its words in the store; one that was killed leaves none, and that is the difference.

RUN_TAG = "kubeflow.run_id"
"""Tag of runs and model versions in MLflow: the id of Kubeflow's run that made them."""


@dataclass(frozen=True)
class StepFailure:
    """Why a step failed, in its own words."""

    step: str | None
    """None where the step was killed and could not say anything."""
    kind: Literal["user", "failed", "crash"]
    """`user`: the user can fix it; `failed`: a foreseen error; `crash`: a bug, or a step that was killed."""
    message: str


def note_run(store: Storage, kubeflow_run: str, run_id: str) -> None:
    """Remember which run of ours Kubeflow's run is: the newest of Kubeflow's goes into the run's own folder too."""
    store.write_json(_key(kubeflow_run), {"run_id": run_id})
    store.child(run_key(run_id)).write_json(KUBEFLOW_RUN, {"run": kubeflow_run})


def run_of(store: Storage, kubeflow_run: str) -> str | None:
    """The id of our run, or None while prepare_data has not got so far."""
    return (store.read_json(_key(kubeflow_run), None) or {}).get("run_id")


def kubeflow_run_of(run: Storage) -> str | None:
    """Kubeflow's run that last executed the run in this folder; None for a run that Kubeflow has never seen."""
    return (run.read_json(KUBEFLOW_RUN, None) or {}).get("run")


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
        found = store.read_json(key, None)
        if found is not None:
            return StepFailure(**found)
    return None


def _key(kubeflow_run: str) -> str:
    return f"{KUBEFLOW}/{kubeflow_run}.json"


def _failure_keys(run_id: str, kubeflow_run: str) -> list[str]:
    keys = [f"{run_key(run_id)}/{FAILURE}"] if run_id else []
    return keys + ([f"{KUBEFLOW}/{kubeflow_run}-{FAILURE}"] if kubeflow_run else [])
