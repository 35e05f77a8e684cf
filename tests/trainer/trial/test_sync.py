from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podium.trainer.trial import sync
from podium.trainer.trial.storage import Storage, open_storage
from podium.trainer.trial.sync import artifact_root, ensure_parent, initialise, mlflow_uri, sync_run


@pytest.fixture(scope="module")
def racers(tmp_path_factory: pytest.TempPathFactory) -> list[subprocess.Popen[str]]:
    """Two processes that create one database at once."""
    code = f"from podium.trainer.trial.sync import initialise; initialise('{_uri(tmp_path_factory.getbasetemp())}')"
    return [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def said(racers: list[subprocess.Popen[str]]) -> list[str]:
    return [racer.communicate()[0] for racer in racers]


@pytest.fixture(scope="module")
def database(said: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite file for the module, since its migration takes seconds."""
    uri = _uri(tmp_path_factory.getbasetemp())
    initialise(uri)
    return uri


def _uri(base: Path) -> str:
    return f"sqlite:///{base}/sync/mlflow.db"


@pytest.fixture
def experiment() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path / "trial"))
    storage.write_json(
        "config.json",
        {
            "format_version": 1,
            "config": {"seed": 42, "model": {"d_model": 8, "allocation": None}, "stop": {"looks": [1, 2]}},
            "labels": {"variant": "glu4", "seed": "42"},
        },
    )
    return storage


@pytest.fixture(autouse=True)
def another_process() -> Iterator[None]:
    """Every test begins as a new process would, knowing nothing of the server."""
    yield
    sync._confirmed.clear()
    sync._unreachable.clear()


def lines(first: int, last: int, *, every: int = 10, late: float = 0.0) -> list[dict[str, float | int | None]]:
    found: list[dict[str, float | int | None]] = []
    for step in range(first, last + 1):
        seconds = step * 0.5 + late
        found.append(
            {
                "step": step,
                "tokens": step * 100,
                "train_loss": 5 - step / 1000,
                "learning_rate": 1e-3,
                "gradient_norm": 1.0,
                "train_seconds": seconds,
            }
        )
        if step % every == 0:
            found.append(
                {
                    "step": step,
                    "tokens": step * 100,
                    "val_loss": 5 - step / 900,
                    "val_perplexity": 100.0,
                    "bits_per_byte": None,
                    "gradient_norm": 1.0,
                    "train_seconds": seconds,
                }
            )
    return found


def write(folder: Storage, rows: list[dict[str, float | int | None]]) -> None:
    folder.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in sync.client(uri).get_metric_history(run_id, key)]


def send(folder: Storage, uri: str, experiment: str, **fields: Any) -> str:
    run_id = sync_run(folder, uri, experiment, run_name="seed-42", **fields)
    assert run_id is not None
    return run_id


def assert_complete(uri: str, run_id: str, last: int) -> None:
    """Every step once, none left out, and the evaluations too."""
    assert history(uri, run_id, "train_loss") == [(step, 5 - step / 1000) for step in range(1, last + 1)]
    assert history(uri, run_id, "val_loss") == [(step, 5 - step / 900) for step in range(10, last + 1, 10)]
    assert [step for step, _ in history(uri, run_id, "gradient_norm")] == list(range(1, last + 1))


def test_a_growing_file_is_sent_once_and_whole(folder: Storage, database: str, experiment: str) -> None:
    for last in (7, 7, 10, 25, 600):
        write(folder, lines(1, last))
        run_id = send(folder, database, experiment)
    assert_complete(database, run_id, 600)
    assert len(sync.client(database).search_runs([_experiment_id(database, experiment)])) == 1


def test_a_resumed_run_doubles_no_point_and_skips_none(folder: Storage, database: str, experiment: str) -> None:
    write(folder, lines(1, 37))
    send(folder, database, experiment)
    # cut to the checkpoint at 20 and gone on with another clock, partly before the next sync
    write(folder, lines(1, 20) + lines(21, 30, late=9.0))
    send(folder, database, experiment)
    write(folder, lines(1, 20) + lines(21, 55, late=9.0))
    run_id = send(folder, database, experiment)
    assert_complete(database, run_id, 55)


@pytest.mark.parametrize("lost", ["the note", "the last step noted"])
def test_a_crash_before_the_note_was_written_doubles_no_point(
    folder: Storage, database: str, experiment: str, lost: str
) -> None:
    write(folder, lines(1, 20))
    send(folder, database, experiment)
    noted = folder.read_bytes("sync.json")
    write(folder, lines(1, 33))
    send(folder, database, experiment)
    if lost == "the note":
        folder.delete("sync.json")
    else:
        folder.write_bytes("sync.json", noted)
    sync._confirmed.clear()  # a new process
    write(folder, lines(1, 30) + lines(31, 44, late=5.0))
    run_id = send(folder, database, experiment)
    assert_complete(database, run_id, 44)
    assert len(sync.client(database).search_runs([_experiment_id(database, experiment)])) == 1


def test_a_line_cut_short_and_a_loss_that_was_not_finite_are_no_points(
    folder: Storage, database: str, experiment: str
) -> None:
    rows = lines(1, 10)
    rows[3]["train_loss"] = None
    rows[-1]["val_loss"] = None
    folder.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "tra')
    run_id = send(folder, database, experiment)
    assert [step for step, _ in history(database, run_id, "train_loss")] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert history(database, run_id, "val_loss") == []
    assert history(database, run_id, "tokens") == [(10, 1000.0)]


def test_points_lie_on_the_training_clock(folder: Storage, database: str, experiment: str) -> None:
    write(folder, lines(1, 3))
    run_id = send(folder, database, experiment)
    client = sync.client(database)
    started = client.get_run(run_id).info.start_time
    times = [point.timestamp - started for point in client.get_metric_history(run_id, "train_loss")]
    assert times == [500, 1000, 1500]


def test_the_config_becomes_parameters_and_the_labels_tags(folder: Storage, database: str, experiment: str) -> None:
    parent = ensure_parent(database, experiment, "run/stage", "phase1", {"study": "s", "stage": "phase1"})
    run_id = send(folder, database, experiment, parent_run_id=parent, tags={"commit": "abc"})
    run = sync.client(database).get_run(run_id)
    assert run.data.params == {"seed": "42", "model.d_model": "8", "stop.looks": "[1, 2]"}
    assert run.data.tags.items() >= {
        ("variant", "glu4"),
        ("seed", "42"),
        ("commit", "abc"),
        ("mlflow.parentRunId", parent),
        ("mlflow.runName", "seed-42"),
    }


def result(**fields: Any) -> dict[str, Any]:
    return {
        "run_name": "seed-42",
        "status": "completed",
        "reason": "all steps run",
        "seed": 42,
        "steps": 20,
        "training_seconds": 10.0,
        "final_val_loss": 4.5,
        "kill_tokens": None,
        "parameters": {"total": 123},
        "versions": {"podium": "0.1.0", "commit": "abc", "cuda": None},
    } | fields


def test_the_result_ends_the_run_once(folder: Storage, database: str, experiment: str) -> None:
    write(folder, lines(1, 20))
    send(folder, database, experiment)
    folder.write_json("result.json", result())
    for _ in range(2):
        run_id = send(folder, database, experiment)
    run = sync.client(database).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final_val_loss"] == 4.5
    assert run.data.metrics["parameters"] == 123
    assert "kill_tokens" not in run.data.metrics
    assert run.data.tags.items() >= {("status", "completed"), ("reason", "all steps run"), ("commit", "abc")}
    assert history(database, run_id, "final_val_loss") == [(20, 4.5)]
    # what the conductor adds afterwards is sent too
    folder.write_json("result.json", result(cost_usd=1.5))
    send(folder, database, experiment)
    assert history(database, run_id, "cost_usd") == [(20, 1.5)]
    assert history(database, run_id, "final_val_loss") == [(20, 4.5)]


@pytest.mark.parametrize(
    ("status", "shown"),
    [("broken", "FAILED"), ("cancelled", "KILLED"), ("killed", "FINISHED"), ("diverged", "FINISHED")],
)
def test_only_a_broken_or_cancelled_trial_is_shown_as_such(
    folder: Storage, database: str, experiment: str, status: str, shown: str
) -> None:
    folder.write_json("result.json", result(status=status))
    run_id = send(folder, database, experiment)
    assert sync.client(database).get_run(run_id).info.status == shown


def test_mlflow_away_raises_nothing_is_said_once_and_is_caught_up(
    folder: Storage, tmp_path: Path, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "place"
    place.write_text("a file where the folder of the database should be")
    uri = f"sqlite:///{place}/mlflow.db"
    with caplog.at_level(logging.WARNING, logger="podium.sync"):
        for last in (5, 10, 15):
            write(folder, lines(1, last))
            assert sync_run(folder, uri, experiment, run_name="r") is None
        assert [record.getMessage().split(";")[0] for record in caplog.records] == [f"MLflow at {uri} does not serve"]
        assert not folder.exists("sync.json")
        place.unlink()
        write(folder, lines(1, 20))
        run_id = send(folder, uri, experiment)
    assert_complete(uri, run_id, 20)
    assert len(caplog.records) == 2  # and that it serves again


def test_a_server_that_goes_away_between_two_batches_is_caught_up(
    folder: Storage, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, lines(1, 20))
    run_id = send(folder, database, experiment)
    client = sync.client(database)
    calls = []

    def failing(run_id: str, **content: Any) -> None:
        calls.append(content)
        if len(calls) == 2:
            raise ConnectionError("gone")
        type(client).log_batch(client, run_id, **content)

    write(folder, lines(1, 900))
    with monkeypatch.context() as patch:
        patch.setattr(client, "log_batch", failing)
        assert sync_run(folder, database, experiment, run_name="r") is None
    assert len(history(database, run_id, "train_loss")) > 20
    assert send(folder, database, experiment) == run_id
    assert_complete(database, run_id, 900)


def test_a_refused_connection_costs_seconds_and_no_exception(folder: Storage, experiment: str) -> None:
    write(folder, lines(1, 5))
    began = time.monotonic()
    assert sync_run(folder, "http://127.0.0.1:9", experiment, run_name="r") is None
    assert time.monotonic() - began < 60


def test_a_server_that_lets_us_wait_is_left_alone_for_twice_as_long(
    folder: Storage, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, lines(1, 5))
    calls = []
    monkeypatch.setattr(sync, "_PATIENCE", 0.1)

    def slow(*_: Any, **__: Any) -> None:
        calls.append(time.sleep(0.3))
        raise TimeoutError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(sync.client(database), "get_experiment_by_name", slow)
        for _ in range(3):
            assert sync_run(folder, database, experiment, run_name="r") is None
    assert len(calls) == 1
    time.sleep(0.7)
    assert_complete(database, send(folder, database, experiment), 5)


def test_a_run_that_the_server_no_longer_has_is_sent_again(folder: Storage, database: str, experiment: str) -> None:
    write(folder, lines(1, 20))
    folder.write_json("result.json", result())
    send(folder, database, experiment)
    # the note now names a run of a database that is gone
    again = f"{experiment}-again"
    folder.write_json("sync.json", folder.read_json("sync.json") | {"run_id": "0" * 32, "experiment": again})
    run_id = send(folder, database, again)
    assert_complete(database, run_id, 20)
    assert sync.client(database).get_run(run_id).info.status == "FINISHED"


def test_a_folder_with_another_config_is_another_run(folder: Storage, database: str, experiment: str) -> None:
    write(folder, lines(1, 10))
    first = send(folder, database, experiment)
    folder.write_json("config.json", {"config": {"seed": 43}})
    second = send(folder, database, experiment)
    assert first != second
    assert_complete(database, second, 10)


def test_a_parent_is_made_once(database: str, experiment: str) -> None:
    run = ensure_parent(database, experiment, "it's a key", "run", {"study": "s"})
    stage = ensure_parent(database, experiment, "it's a key/phase1", "phase1", {}, parent=run)
    assert ensure_parent(database, experiment, "it's a key", "run", {}) == run
    assert ensure_parent(database, experiment, "it's a key/phase1", "phase1", {}, parent=run) == stage
    assert sync.client(database).get_run(stage).data.tags["mlflow.parentRunId"] == run


def test_artifacts_lie_beside_the_database_or_where_the_store_says(database: str, experiment: str) -> None:
    ensure_parent(database, experiment, "k", "run", {})
    beside = Path(database.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    found = sync.client(database).get_experiment_by_name(experiment)
    assert found is not None
    assert found.artifact_location == beside.as_uri()
    ensure_parent(database, f"{experiment}-s3", "k", "run", {}, artifacts=artifact_root("s3://bucket/store"))
    found = sync.client(database).get_experiment_by_name(f"{experiment}-s3")
    assert found is not None
    assert found.artifact_location == "s3://bucket/store/mlflow-artifacts"


def test_where_mlflow_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PODIUM_MLFLOW_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert mlflow_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert mlflow_uri("file:///a b/store") == "sqlite:////a b/store/mlflow.db"
    assert mlflow_uri("s3://bucket/store") == "sqlite:////state/podium/mlflow.db"
    assert artifact_root("file:///a b/store") == "file:///a%20b/store/mlflow-artifacts"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert mlflow_uri("s3://bucket/store") == "sqlite:////home/me/.local/state/podium/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert mlflow_uri("s3://bucket/store") == "http://mlflow:5000"
    monkeypatch.setenv("PODIUM_MLFLOW_URI", "http://other:5000")
    assert mlflow_uri(str(tmp_path)) == "http://other:5000"


def test_two_processes_may_create_the_database_at_once_and_say_nothing(
    racers: list[subprocess.Popen[str]], said: list[str]
) -> None:
    assert said == ["", ""]
    assert [racer.returncode for racer in racers] == [0, 0]


def _experiment_id(uri: str, name: str) -> str:
    found = sync.client(uri).get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)
