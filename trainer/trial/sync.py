"""From a run's folder to MLflow: `metrics.jsonl` past what was sent, the config as parameters, the result at the end.

Training never waits for MLflow. The folder is the truth; this sends what the server lacks, now or later, and a point
is sent once: a resumed run writes the steps since its checkpoint a second time, and they are left out here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.result import CONFIG, METRICS, RESULT, SYNC, Status, read_lines
from podium.trainer.trial.routing_metrics import routing_values
from podium.trainer.trial.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient


# MLflow as a place: where it is, its client, its experiments and the runs that hold other runs.
#
# Nothing here is needed to train: whoever calls it must be ready for a server that is down (`sync` is).

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


__all__ = ["artifact_root", "ensure_parent", "initialise", "mlflow_uri", "sync_run"]

_MAX_METRICS = 1000
_MAX_PARAMS = 100
_MAX_VALUE = 5000
"""MLflow's limits of one call and of one value."""
_RESULT_METRICS = (
    "final_train_loss",
    "final_val_loss",
    "final_val_perplexity",
    "final_bits_per_byte",
    "best_val_loss",
    "best_val_perplexity",
    "passes",
    "target_loss",
    "time_to_target_seconds",
    "kill_tokens",
    "stopped_tokens",
    "training_seconds",
    "evaluation_seconds",
    "compile_seconds",
    "checkpoint_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "device_seconds",
    "cost_usd",
    "attempts",
)
_PATIENCE = 2.0
"""Seconds that a failing call may take without being paused after."""
_ENDED = {Status.BROKEN: "FAILED", Status.CANCELLED: "KILLED"}

_log = logging.getLogger("podium.sync")
_unreachable: dict[str, float] = {}
"""Tracking URIs whose failure has been logged and that have not answered since, and when to try them again."""
_confirmed: set[tuple[str, str | None]] = set()
"""(tracking URI, run id) whose offsets this process has compared with the server's own points."""


@dataclass(frozen=True, slots=True)
class _State:
    """`sync.json`: what was sent where. Steps are the last sent of each kind of line."""

    tracking_uri: str
    experiment: str
    config_sha256: str
    """Of the training config: a folder that holds another run now gets another run in MLflow."""
    run_id: str | None = None
    train_step: int = -1
    val_step: int = -1
    router_step: int = -1
    result_sha256: str | None = None


def sync_run(
    folder: Storage,
    tracking_uri: str,
    experiment: str,
    *,
    run_name: str,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: str | None = None,
) -> str | None:
    """Send what MLflow lacks of the run in `folder`; the MLflow run's id, or None where MLflow could not be reached.

    A failure of MLflow is logged once until it answers again, and a later call catches up; a call that comes within
    twice the time that a slow failure took does not try. Labels of the run's
    config become tags, as do `tags`; `artifacts` is the artifact root where the experiment is to be created. Raises
    StorageError where the folder itself can't be read or written.
    """
    began = time.monotonic()
    if began < _unreachable.get(tracking_uri, began):
        return None
    spec = json.loads(_read(folder, CONFIG) or b"{}")
    config = spec.get("config", {})
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    fresh = _State(tracking_uri, experiment, digest)
    state = _read_state(folder, fresh)
    # the result first: where it exists, the metrics read after it are complete
    result = _read(folder, RESULT)
    lines = read_lines((_read(folder, METRICS) or b"").decode())
    try:
        after = state if _is_known(state) else fresh
        if after.run_id is None:
            run_tags = {**spec.get("labels", {}), **(tags or {})}
            after = _open_run(after, folder.uri, run_name, parent_run_id, run_tags, artifacts)
            _send_params(after, spec)
        if (tracking_uri, after.run_id) not in _confirmed:
            after = _with_server_steps(after)
        after = _send_lines(after, lines)
        if result is not None:
            after = _send_result(after, result)
    except Exception as error:  # noqa: BLE001 - whatever ails a tracking server, training does not stop for it
        _confirmed.discard((tracking_uri, state.run_id))
        if tracking_uri not in _unreachable:
            _log.warning("MLflow at %s does not serve; what is missing is sent later: %s", tracking_uri, error)
        # at most a third of the caller's time is lost to a server that lets it wait; one that refuses costs nothing
        now = time.monotonic()
        _unreachable[tracking_uri] = now + (2 * (now - began) if now - began > _PATIENCE else 0.0)
        return None
    if _unreachable.pop(tracking_uri, None) is not None:
        _log.warning("MLflow at %s serves again", tracking_uri)
    _confirmed.add((tracking_uri, after.run_id))
    if after != state:
        folder.write_json(SYNC, asdict(after))
    return after.run_id


def _read(folder: Storage, key: str) -> bytes | None:
    try:
        return folder.read_bytes(key)
    except NotFoundError:
        return None


def _read_state(folder: Storage, fresh: _State) -> _State:
    stored = _read(folder, SYNC)
    state = _State(**json.loads(stored)) if stored else fresh
    same = all(getattr(state, name) == getattr(fresh, name) for name in ("tracking_uri", "experiment", "config_sha256"))
    return state if same else fresh


def _is_known(state: _State) -> bool:
    """Whether the server has the run: its database may have been deleted since. Asked once a process."""
    if state.run_id is None or (state.tracking_uri, state.run_id) in _confirmed:
        return True
    from mlflow.exceptions import MlflowException

    try:
        client(state.tracking_uri).get_run(state.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _with_server_steps(state: _State) -> _State:
    """The state with what the server has: more than noted, after a crash before `sync.json` was written."""
    return replace(
        state,
        train_step=max(state.train_step, _last_step(state, "train_loss", "learning_rate")),
        val_step=max(state.val_step, _last_step(state, "val_loss", "tokens")),
        router_step=max(state.router_step, _last_step(state, "router/noise")),
    )


def _last_step(state: _State, *keys: str) -> int:
    tracking = client(state.tracking_uri)
    return max(
        (point.step for key in keys for point in tracking.get_metric_history(state.run_id, key)),
        default=-1,
    )


def _open_run(
    state: _State, uri: str, name: str, parent: str | None, tags: Mapping[str, str], artifacts: str | None
) -> _State:
    """The run of this folder: one that an earlier process began and did not note, or a new one."""
    experiment_id = ensure_experiment(state.tracking_uri, state.experiment, artifacts)
    key = f"{uri}#{state.config_sha256[:8]}"
    run_id = find_run(state.tracking_uri, experiment_id, key)
    if run_id is None:
        run_id = create_run(state.tracking_uri, experiment_id, key, name, tags, parent)
    return replace(state, run_id=run_id)


def _send_params(state: _State, spec: Mapping[str, Any]) -> None:
    """The config as dotted parameters. One that is sent again with its value is no change."""
    from mlflow.entities import Param

    params = [Param(name, value) for name, value in _flatten(spec.get("config", {}))]
    for some in _chunks(params, _MAX_PARAMS):
        client(state.tracking_uri).log_batch(state.run_id, params=some)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{name}.")
        elif item is not None:
            text = item if isinstance(item, str) else json.dumps(item)
            yield f"{prefix}{name}", text[:_MAX_VALUE]


def _send_lines(state: _State, lines: Iterable[Mapping[str, Any]]) -> _State:
    """Send the lines past the state's steps, in batches of whole lines."""
    pending: list[tuple[int, Mapping[str, Any]]] = []
    for line in lines:
        step = int(line["step"])
        if "val_loss" in line and step > state.val_step:
            state = replace(state, val_step=step)
        elif "router" in line and step > state.router_step:
            state = replace(state, router_step=step)
        elif "train_loss" in line and step > state.train_step:
            state = replace(state, train_step=step)
        else:
            continue
        pending.append((step, line))
    if not pending:
        return state
    from mlflow.entities import Metric

    tracking = client(state.tracking_uri)
    started = tracking.get_run(state.run_id).info.start_time
    batch: list[Metric] = []
    for step, line in pending:
        # on the training clock: the same point always has the same time, whenever it is sent
        at = started + round(1000 * (line.get("train_seconds") or 0.0))
        metrics = [Metric(name, value, at, step) for name, value in _values(line)]
        if len(batch) + len(metrics) > _MAX_METRICS:
            tracking.log_batch(state.run_id, metrics=batch)
            batch = []
        batch += metrics
    tracking.log_batch(state.run_id, metrics=batch)
    return state


def _values(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line under the names they have in MLflow. A null was not finite and is left out."""
    if "router" in line:
        yield from routing_values(line)
        return
    # of an evaluation line, gradient_norm is a mean over steps that each have theirs already; a train line's tokens
    # and seconds would only repeat the step
    left_out = {"step", "gradient_norm"} if "val_loss" in line else {"step", "tokens", "train_seconds"}
    for name, value in line.items():
        if name not in left_out and isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _send_result(state: _State, content: bytes) -> _State:
    """The result's numbers as metrics of its last step, its status and versions as tags; then the run is ended."""
    digest = hashlib.sha256(content).hexdigest()
    if state.result_sha256 == digest:
        return state
    from mlflow.entities import Metric, RunTag

    tracking, run_id = client(state.tracking_uri), state.run_id
    result = json.loads(content)
    at = tracking.get_run(run_id).info.start_time + round(1000 * (result.get("training_seconds") or 0.0))
    numbers = {name: result.get(name) for name in _RESULT_METRICS}
    numbers["parameters"] = (result.get("parameters") or {}).get("total")
    metrics = [
        Metric(name, float(value), at, int(result.get("steps") or 0))
        for name, value in numbers.items()
        if value is not None and math.isfinite(value)
    ]
    texts = {"status": result["status"], "reason": result["reason"], "kill_detail": result.get("kill_detail")}
    texts |= result.get("versions") or {}
    tags = [RunTag(name, str(value)[:_MAX_VALUE]) for name, value in texts.items() if value is not None]
    tracking.log_batch(run_id, metrics=metrics, tags=tags)
    tracking.set_terminated(run_id, status=_ENDED.get(Status(result["status"]), "FINISHED"))
    return replace(state, result_sha256=digest)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


# A run that is used alone sends its own metrics to MLflow: from a thread while it trains, and once at its end.

INTERVAL_SECONDS = 30.0


class SyncThread:
    """Calls `sync_run` every half minute, and a last time when the context ends, however it ends."""

    def __init__(self, folder: Storage, tracking_uri: str, experiment: str, run_name: str) -> None:
        self._folder = folder
        self._uri, self._experiment, self._run_name = tracking_uri, experiment, run_name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sync", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        over = False
        while not over:
            over = self._end.wait(INTERVAL_SECONDS)
            sync_run(self._folder, self._uri, self._experiment, run_name=self._run_name)
