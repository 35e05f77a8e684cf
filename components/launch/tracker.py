"""MLflow while a stage runs: one background process sends what the trials write, so that no trial ever waits for it.

MLflow takes 1.5 s and 150 MB to import; in a process of its own, at the lowest priority, it costs the conductor
nothing, and a SQLite file has one writer. It dies with the conductor, and a failure of it fails no stage: `podium sync`
sends later what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from podium.components.launch import child
from podium.components.study.layout import TRIALS, TrialKey, mlflow_tags, trials_key
from podium.components.study.run import Run
from podium.trainer.trial.result import CONFIG, METRICS, RESULT, SYNC
from podium.trainer.trial.storage import open_storage
from podium.trainer.trial.sync import artifact_root, ensure_parent, initialise, mlflow_uri, sync_run

INTERVAL_SECONDS = 15.0
FINAL_SECONDS = 120.0
"""How long the end of a stage waits for the last points to be sent."""

_log = logging.getLogger("podium.tracker")


class Tracker:
    """The background process of one stage. A context: it has sent everything, or given up, when that is left."""

    def __init__(self, run: Run, stage: str, folder: str, uri: str) -> None:
        """`folder` holds the trials, from the run's folder; `uri` is MLflow's."""
        self._arguments = {
            "run": run.storage.uri,
            "stage": stage,
            "folder": folder,
            "study": run.study.name,
            "run_id": run.id,
            "uri": uri,
            "artifacts": artifact_root(run.store_uri),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Tracker:
        command = [sys.executable, "-m", "podium.components.launch.tracker", json.dumps(self._arguments)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()  # the sign to send the rest and end
        try:
            code = self._process.wait(FINAL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0:
            _log.warning("MLflow lacks some of this stage (its sender ended with %s): `podium sync` sends it", code)


def main() -> None:
    """Send at intervals until stdin is closed, and once more."""
    arguments = json.loads(sys.argv[1])
    os.nice(19)
    done = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        done.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    sender = Sender(**arguments)
    sender.prepare()
    while not done.wait(INTERVAL_SECONDS):
        sender.send()
    sender.send()


class Sender:
    """Sends a stage's trials to MLflow, below a run for the stage, below one for the study's run."""

    def __init__(self, run: str, stage: str, folder: str, study: str, run_id: str, uri: str, artifacts: str) -> None:
        self._storage = open_storage(run)
        self._stage, self._folder, self._study, self._run_id = stage, folder, study, run_id
        self._uri, self._artifacts = uri, artifacts
        self._kubeflow_tags: dict[str, str] = {}
        self._parent: str | None = None
        self._sent: dict[str, tuple[str, ...]] = {}

    def prepare(self) -> None:
        """Import MLflow while the first trials import torch, so that the end of a short stage does not wait for it."""
        with suppress(Exception):  # the first send says what is wrong
            initialise(self._uri)

    def send(self, folders: Sequence[str] | None = None) -> None:
        """Send what has changed since the last time, of these trials or of all. A server that is down is for later."""
        for folder in self._trials() if folders is None else folders:
            stamps = self._stamps(folder)
            if stamps == self._sent.get(folder):
                continue
            parent = self._ensure_parent()
            if parent is None:
                return
            sent = sync_run(
                self._storage.child(folder),
                self._uri,
                self._study,
                run_name=folder.removeprefix(f"{TRIALS}/"),
                parent_run_id=parent,
                tags=self._kubeflow_tags,
                artifacts=self._artifacts,
            )
            if sent is None:
                return
            self._sent[folder] = stamps

    def _trials(self) -> list[str]:
        keys = self._storage.list(self._folder)
        return [key.removesuffix(f"/{CONFIG}") for key in keys if key.endswith(f"/{CONFIG}")]

    def _stamps(self, folder: str) -> tuple[str, ...]:
        names = (f"{folder}/{METRICS}", f"{folder}/{RESULT}")
        return tuple(self._storage.stamp(name) if self._storage.exists(name) else "" for name in names)

    def _ensure_parent(self) -> str | None:
        if self._parent is None:
            place: dict[str, Any] = {"tracking_uri": self._uri, "experiment": self._study, "artifacts": self._artifacts}
            try:
                self._kubeflow_tags = mlflow_tags(self._storage)
                tags = {"study": self._study, "run": self._run_id, **self._kubeflow_tags}
                top = ensure_parent(key=self._run_id, name=self._run_id, tags=tags, **place)
                self._parent = ensure_parent(
                    key=f"{self._run_id}/{self._stage}",
                    name=self._stage,
                    tags={**tags, "stage": self._stage},
                    parent=top,
                    **place,
                )
            except Exception as error:  # noqa: BLE001  MLflow raises what its transport and database raise
                _log.warning("MLflow at %s does not serve, training goes on and is sent later: %s", self._uri, error)
        return self._parent


if __name__ == "__main__":
    main()


# What MLflow could not take while a stage ran, sent by the steps that come after it.
#
# A stage does not wait for a server that is away: its verdict would come late. So each later step that runs while
# nobody else writes looks which ended trials are not wholly in MLflow, and sends those. Where there is none, MLflow
# is not even imported.


def catch_up(run: Run) -> None:
    """Send what MLflow lacks of the run's ended trials. One that is still away is logged and left for the next step.

    Raises StorageError where the store can't be read.
    """
    uri = mlflow_uri(run.store_uri)
    for stage in run.stages:
        unsent = [key.folder for key in _ended(run, stage) if not is_sent(run, key.folder, uri)]
        if unsent:
            artifacts = artifact_root(run.store_uri)
            Sender(run.uri, stage, trials_key(stage), run.study.name, run.id, uri, artifacts).send(unsent)


def _ended(run: Run, stage: str) -> Iterator[TrialKey]:
    """The stage's trials that ran here and ended; a result that was taken from another run is in MLflow as that's."""
    for trial in run.trials(stage):
        if run.result(trial.key) is not None and run.storage.exists(trial.key.file(CONFIG)):
            yield trial.key


def is_sent(run: Run, folder: str, uri: str) -> bool:
    """Whether the server at `uri` has the trial in this folder: with its result, where it has ended."""
    state = run.read_json(f"{folder}/{SYNC}") or {}
    ended = run.storage.exists(f"{folder}/{RESULT}")
    return state.get("tracking_uri") == uri and bool(state.get("result_sha256") if ended else state.get("run_id"))
