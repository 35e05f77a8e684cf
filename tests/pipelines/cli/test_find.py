"""`status`, `logs` and `cancel` of a run on Kubeflow, by its id there or ours."""

import json
import uuid

import pytest

from podium.components.study.layout import StepFailure, note_failure, note_run
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import open_kubeflow


@pytest.fixture
def started(kfp, make_run):
    """A run of ours that Kubeflow executes, and the id that it has there."""
    run = make_run("ranking")
    with open_kubeflow(Address(host=kfp.host)) as kubeflow:
        kubeflow_run = kubeflow.create_run(
            "demo",
            experiment_id=kubeflow.experiment(kfp.study),
            pipeline={"pipeline_spec": {"pipelineInfo": {"name": "demo"}}},
            parameters={"store": run.store_uri},
        )
    return run, kubeflow_run


def test_status_and_logs_take_kubeflows_id(podium, started):
    run, kubeflow_run = started
    note_run(run.store, kubeflow_run, run.id)
    found = podium("status", kubeflow_run, "--store", run.store_uri, "--json")
    assert json.loads(found.stdout)["run_id"] == run.id
    assert "ranking/baseline-seed-42.log" in podium("logs", kubeflow_run, "--store", run.store_uri).stdout


def test_kubeflow_says_which_store_a_run_is_in(podium, started, kfp, monkeypatch):
    run, kubeflow_run = started
    note_run(run.store, kubeflow_run, run.id)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    assert json.loads(podium("status", kubeflow_run, "--json").stdout)["run_id"] == run.id


def test_a_run_that_is_none_of_ours_yet_is_told_by_kubeflows_word(podium, started, kfp, monkeypatch):
    _, kubeflow_run = started
    kfp.state.set_run(kubeflow_run, "RUNNING", {"Prepare data": "RUNNING"})
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    found = podium("status", kubeflow_run)
    assert found.exit_code == 0, found.output
    assert "running, no run of ours yet" in found.stdout
    assert "Prepare data: running" in found.stdout
    refused = podium("logs", kubeflow_run)
    assert refused.exit_code == 2
    assert "prepare_data has not got so far" in refused.stderr


def test_why_prepare_data_refused_is_told(podium, started):
    run, kubeflow_run = started
    note_failure(run.store, StepFailure("prepare_data", "user", "no such corpus"), kubeflow_run=kubeflow_run)
    found = podium("status", kubeflow_run, "--store", run.store_uri)
    assert "failed, no run of ours yet: prepare_data: no such corpus" in found.stdout


def test_an_id_that_nobody_knows_is_refused(podium, tmp_path):
    refused = podium("status", str(uuid.uuid4()), "--store", tmp_path / "store")
    assert refused.exit_code == 2
    assert "--store" in refused.stderr


def test_cancel_stops_the_run_in_its_store_and_ends_it_on_kubeflow(podium, started, kfp, monkeypatch):
    run, kubeflow_run = started
    note_run(run.store, kubeflow_run, run.id)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    found = podium("cancel", kubeflow_run, "--store", run.store_uri)
    assert found.exit_code == 0, found.output
    assert "cancelled" in found.stdout
    assert run.state() == "cancelled"
    assert kfp.state.runs[kubeflow_run]["state"] == "FAILED"  # KFP's word for what was terminated
    again = podium("cancel", run.id, "--store", run.store_uri)
    assert "had ended already" in again.stderr


def test_cancel_ends_a_run_on_kubeflow_that_is_none_of_ours_yet(podium, started, kfp, monkeypatch):
    _, kubeflow_run = started
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.host)
    found = podium("cancel", kubeflow_run)
    assert found.exit_code == 0, found.output
    assert "ended" in found.stdout
    assert kfp.state.runs[kubeflow_run]["state"] == "FAILED"


def test_cancel_without_kubeflows_address_says_that_it_was_not_asked(podium, started):
    run, kubeflow_run = started
    note_run(run.store, kubeflow_run, run.id)
    found = podium("cancel", run.id, "--store", run.store_uri)
    assert found.exit_code == 0, found.output
    assert "not ended: KF_PIPELINES_ENDPOINT does not say where it is" in found.stderr
