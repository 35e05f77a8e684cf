"""MLflow as a place: where it is, its client, its experiments and the runs that hold other runs.

Nothing here is needed to train: whoever calls it must be ready for a server that is down (`sync` is).
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = "podium.key"
"""The tag by which a run is found again."""
PARENT_TAG = "mlflow.parentRunId"

_SQLITE = "sqlite:///"
_opening = threading.Lock()


def mlflow_uri(store_uri: str) -> str:
    """Where MLflow is, for a store (`file:///…`, a plain path, or `s3://…`).

    `PODIUM_MLFLOW_URI`, else `MLFLOW_TRACKING_URI`; else a SQLite file beside a local store, and in the user's state
    folder for a store in S3, which can't hold one.
    """
    given = os.environ.get("PODIUM_MLFLOW_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    folder = _local_folder(store_uri)
    if folder is None:
        state = os.environ.get("XDG_STATE_HOME")
        folder = (Path(state) if state else Path.home() / ".local" / "state") / "podium"
    return f"{_SQLITE}{folder.absolute() / 'mlflow.db'}"


def artifact_root(store_uri: str) -> str:
    """Where the artifacts of runs and registered models go: in the store itself."""
    folder = _local_folder(store_uri)
    root = store_uri.rstrip("/") if folder is None else folder.absolute().as_uri()
    return f"{root}/mlflow-artifacts"


def initialise(uri: str) -> None:
    """Create the database, or bring an older one up to date. Other URIs are left to their server.

    Raises what MLflow raises where that fails.
    """
    if uri.startswith(_SQLITE):
        client(uri)


def client(uri: str) -> MlflowClient:
    """The client for a tracking URI, made once a process. A SQLite file is created and migrated under a lock."""
    with _opening:
        return _client(uri)


@lru_cache(maxsize=16)
def _client(uri: str) -> MlflowClient:
    # a server that is down must cost seconds, not MLflow's default of minutes; and nothing is reported to anyone
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        # MLflow 3.17 itself uses what SQLAlchemy 2.1 calls deprecated
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        with _quiet(), _alone(uri):
            database = Path(uri.removeprefix(_SQLITE))
            if uri.startswith(_SQLITE) and not database.exists():
                # Migrations that a kill cuts off half way can't be taken up again: a new database gets them beside its
                # place, and its name when they are done.
                scratch = database.with_name(f".tmp-{database.name}")
                for left in database.parent.glob(f"{scratch.name}*"):
                    left.unlink()
                MlflowClient(tracking_uri=f"{_SQLITE}{scratch}", registry_uri=f"{_SQLITE}{scratch}")
                scratch.replace(database)
            return MlflowClient(tracking_uri=uri, registry_uri=uri)


def ensure_experiment(uri: str, name: str, artifacts: str | None = None) -> str:
    """The id of the experiment, created where it is missing, also while others do so.

    `artifacts` is the root of its artifacts; by default a folder beside a SQLite file, and a server's own choice.
    """
    from mlflow.exceptions import MlflowException

    tracking = client(uri)
    found = tracking.get_experiment_by_name(name)
    if found is None:
        if artifacts is None and uri.startswith(_SQLITE):
            artifacts = f"{Path(uri.removeprefix(_SQLITE)).parent.as_uri()}/mlflow-artifacts"
        try:
            return str(tracking.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            found = tracking.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def find_run(uri: str, experiment_id: str, key: str) -> str | None:
    """The id of the run with this key, or None; of several, the oldest, so that all find the same one."""
    quote = '"' if "'" in key else "'"
    runs = client(uri).search_runs(
        [experiment_id],
        filter_string=f"tags.`{KEY_TAG}` = {quote}{key}{quote}",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return str(runs[0].info.run_id) if runs else None


def create_run(
    uri: str, experiment_id: str, key: str, name: str, tags: Mapping[str, str], parent: str | None = None
) -> str:
    """A new run with this key, below `parent`; its id."""
    below = {PARENT_TAG: parent} if parent else {}
    run = client(uri).create_run(experiment_id, tags={**tags, KEY_TAG: key, **below}, run_name=name)
    return str(run.info.run_id)


def ensure_parent(
    tracking_uri: str,
    experiment: str,
    key: str,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    artifacts: str | None = None,
) -> str:
    """The id of the run that holds others (a study's run, a stage), found by its key or created.

    Raises what MLflow raises where it can't be reached.
    """
    experiment_id = ensure_experiment(tracking_uri, experiment, artifacts)
    return find_run(tracking_uri, experiment_id, key) or create_run(
        tracking_uri, experiment_id, key, name, tags, parent
    )


def _local_folder(store_uri: str) -> Path | None:
    path = store_uri.removeprefix("file://")
    return None if "://" in path else Path(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's account of every migration to itself."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time for what follows: MLflow's migrations fail when two run them on one new SQLite file."""
    if not uri.startswith(_SQLITE):
        yield
        return
    database = Path(uri.removeprefix(_SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
