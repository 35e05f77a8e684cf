"""What a stage could not send to MLflow, a later step sends; what is there costs nothing."""

import pytest

from podium.components.launch import tracker as module
from podium.components.launch.tracker import catch_up
from podium.trainer.trial.sync import client, mlflow_uri


def test_a_later_step_sends_what_a_server_that_was_away_lacks_and_nothing_else(
    two_stage_run, finish, monkeypatch, caplog
):
    run, good = two_stage_run, mlflow_uri(two_stage_run.store_uri)
    finish(run, "screen", baseline=[3.0], wide=[2.9])
    monkeypatch.setenv("PODIUM_MLFLOW_URI", "http://127.0.0.1:9")
    catch_up(run)
    assert "does not serve" in caplog.text

    monkeypatch.setenv("PODIUM_MLFLOW_URI", good)
    catch_up(run)
    experiment = client(good).get_experiment_by_name(run.study.name).experiment_id
    found = {each.info.run_name: each for each in client(good).search_runs([experiment])}
    assert set(found) == {run.id, "screen", "screen/baseline/seed-42", "screen/wide/seed-42"}
    trial = found["screen/wide/seed-42"]
    assert trial.data.tags["mlflow.parentRunId"] == found["screen"].info.run_id
    assert trial.data.tags["status"] == "completed"
    assert trial.data.metrics["final_val_loss"] == 2.9

    finish(run, "screen", narrow=[3.1])
    sent = []

    class Sender:
        def __init__(self, _run, stage, *_):
            self.stage = stage

        def send(self, folders):
            sent.append((self.stage, folders))

    monkeypatch.setattr(module, "Sender", Sender)
    catch_up(run)
    folders = [trial.key.folder for trial in run.trials("screen") if trial.variant.name == "narrow"]
    assert sent == [("screen", folders)]


def test_a_run_that_is_wholly_there_needs_no_server(two_stage_run, finish, monkeypatch):
    run = two_stage_run
    finish(run, "screen", baseline=[3.0])
    (folder,) = [trial.key.folder for trial in run.trials("screen") if trial.variant.name == "baseline"]
    state = {"tracking_uri": mlflow_uri(run.store_uri), "run_id": "1", "result_sha256": "0"}
    run.storage.write_json(f"{folder}/sync.json", state)
    monkeypatch.setattr(module, "Sender", lambda *_: pytest.fail("nothing to send"))
    catch_up(run)
