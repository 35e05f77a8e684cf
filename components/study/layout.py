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

from dataclasses import dataclass

RUNS = "runs"
DATA = "data"
STUDY = "study.yaml"
LEASE = "lease.json"
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
        return f"trials/{self.stage}/{self.variant}/seed-{self.seed}{suffix}"

    @property
    def name(self) -> str:
        """`ranking/emb25/seed-42`: what logs and tables call it."""
        return self.folder.removeprefix("trials/")

    @property
    def log(self) -> str:
        """The trial's log, from the run's folder."""
        return f"logs/{self.stage}/{self.variant}-seed-{self.seed}{'-' + self.fallback if self.fallback else ''}.log"


def verdict_key(stage: str) -> str:
    """The stage's final verdict, from the run's folder."""
    return f"verdicts/{stage}.json"


def evaluation_key(variant: str) -> str:
    """The folder of a finalist's evaluation, from the run's folder."""
    return f"evaluation/{variant}"
