"""Names and labels of what a run has on a cluster: the same for every conductor of the run, different for every other.

A Job's name is made of the store, the run, the trial's fingerprint and the attempt, so that a conductor that was killed
and started again finds its Jobs and can't start one twice: creating it again is a conflict.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from podium.components.launch.launcher import Task

APP = {"app.kubernetes.io/name": "podium", "app.kubernetes.io/component": "trial"}
RUN, STAGE, STORE = "podium.dev/run", "podium.dev/stage", "podium.dev/store"
TASK = "podium.dev/task"
"""Annotation: the task's name in full, `ranking/emb25/seed-42`."""
RUN_URI = "podium.dev/run-uri"
"""Annotation: where the run lies, so that its lease can be watched by who knows only its Jobs."""
FOLDER = "podium.dev/folder"
"""Annotation: the URI of the trial's folder."""
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label that the Job controller puts on a Job's pods."""


@dataclass(frozen=True)
class RunOnCluster:
    """Which run, and which of its steps, some Jobs belong to."""

    store_uri: str
    run_id: str
    run_uri: str
    incarnation: str
    """Changes when a run's folder is removed and made again: Jobs of the former are not the latter's."""
    stage: str

    @property
    def selector(self) -> str:
        """Label selector of the step's Jobs, and of their pods."""
        return ",".join(f"{key}={value}" for key, value in self.labels.items())

    @property
    def labels(self) -> dict[str, str]:
        """The labels that all of the step's Jobs have."""
        return {**run_labels(self.store_uri, self.run_id), STAGE: label(self.stage)}

    def stem(self, task: Task) -> str:
        """A Job's name without the attempt, at most 46 characters."""
        parts = [self.store_uri, self.incarnation, self.run_id, self.stage, task.name, task.identity]
        readable = re.sub(r"[^a-z0-9]+", "-", task.name.lower().replace("/seed-", "-")).strip("-")
        return f"podium-{readable[:25].rstrip('-')}-{_hex(*parts, digits=12)}"

    def job_name(self, task: Task) -> str:
        """The name of the Job that makes this attempt at the task: a DNS label with room for a rank's index."""
        return f"{self.stem(task)}-{task.attempt}"


def run_labels(store_uri: str, run_id: str) -> dict[str, str]:
    """The labels that all Jobs of a run have."""
    return {**APP, RUN: label(run_id), STORE: _hex(store_uri, digits=8)}


def label(text: str) -> str:
    """A text as a label's value: at most 63 characters; what had to be changed keeps its difference by a hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    if plain == text and len(text) <= 63:
        return text
    return f"{plain[:54].rstrip('-._')}-{_hex(text, digits=8)}".lstrip("-")


def _hex(*parts: str, digits: int) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:digits]
