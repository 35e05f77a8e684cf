"""The step report: the page in the store, the ledger and MLflow; a server that is down stops nothing."""

from pathlib import Path

import pytest

from podium.components.report.step import report
from podium.components.study.run import Run
from podium.components.study.schema import Study
from podium.trainer.trial.sync import client, ensure_experiment, find_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("PODIUM_MLFLOW_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one document of text\n\n" * 500)
    study = Study.model_validate(
        {
            "name": "tiny",
            "question": "does it report?",
            "data": {"corpus": {"source": "files", "path": str(corpus)}, "vocab_size": 512},
            "config": {
                "model": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16},
                "data": {"sequence_length": 16},
                "optimizer": {"learning_rate": 1e-3},
                "batch": {"sequences": 4},
                "evaluation": {"every_steps": 5},
            },
            "stages": {"only": {"budget": {"steps": 10}, "promotion": {"policy": "best_mean"}}},
        }
    )
    return Run.create(str(tmp_path / "store"), study)


def test_the_report_is_in_the_store_the_ledger_and_mlflow(run: Run) -> None:
    html = report(run.id, run.store_uri)
    assert run.storage.read_text("report/index.html") == html
    assert len(run.ledger.entries("report")) == 1
    uri = f"sqlite:///{run.store.local_path('mlflow.db')}"
    found = find_run(uri, ensure_experiment(uri, "tiny"), run.id)
    assert found is not None
    listed = client(uri).list_artifacts(found, "report")
    assert [artifact.path for artifact in listed] == ["report/index.html", "report/results.csv", "report/summary.md"]


def test_building_the_report_twice_notes_it_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_MLFLOW_URI", "http://127.0.0.1:9")
    assert report(run.id, run.store_uri) == report(run.id, run.store_uri)
    assert len(run.ledger.entries("report")) == 1


def test_a_tracking_server_that_is_down_stops_no_report(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PODIUM_MLFLOW_URI", "http://127.0.0.1:9")
    assert "No verdict yet" in report(run.id, run.store_uri)
    assert "has no copy of the report" in caplog.text
