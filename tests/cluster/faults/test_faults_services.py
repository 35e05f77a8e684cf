"""Kubelet, API server, S3 or MLflow goes away for a while: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import time

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BASELINE, WIDE, EVERY = "baseline/seed-42", "wide/seed-42", 20


def both_train(scene) -> None:
    """Wait until both trials do: one that can't even read its data would rightly count as crashed."""
    for trial in (WIDE, BASELINE):
        scene.trains(trial, step=EVERY)


def nothing_happened(scene, undisturbed) -> None:
    """Each trial ran once, in the Job that it was given, to the same end."""
    for trial in (BASELINE, WIDE):
        assert [(attempt["code"], attempt["crashed"]) for attempt in scene.attempts(trial)] == [(0, False)]
        assert scene.picture(trial) == undisturbed[trial]
    assert len(scene.job_uids()) == 2


@pytest.mark.core
@pytest.mark.disruptive
def test_a_restarted_kubelet_leaves_trials_alone(scene, undisturbed, cluster):
    conductor = scene.conduct()
    both_train(scene)
    began = time.monotonic()
    cluster.part("restart", "kubelet", kill=True)
    print(f"kubelet killed and ready again after {time.monotonic() - began:.1f} s")
    assert conductor.ends() == 0, conductor.said()
    nothing_happened(scene, undisturbed)


@pytest.mark.disruptive
def test_a_restarted_api_server_costs_nothing(scene, undisturbed, cluster):
    conductor = scene.conduct()
    both_train(scene)
    began = time.monotonic()
    cluster.part("stop", "kube-apiserver", kill=True)
    time.sleep(5)
    cluster.part("restart", "kube-apiserver")
    print(f"API server killed and back after {time.monotonic() - began:.1f} s")
    assert conductor.ends() == 0, conductor.said()
    nothing_happened(scene, undisturbed)


@pytest.mark.disruptive
def test_s3_away_for_a_minute_is_waited_for(scene, undisturbed, cluster):
    conductor = scene.conduct()
    both_train(scene)
    cluster.part("stop", "versitygw", kill=True)
    try:
        time.sleep(60)
    finally:
        cluster.part("start", "versitygw")
    began = time.monotonic()
    assert conductor.ends() == 0, conductor.said()
    print(f"S3 back after 60 s, the stage was done {time.monotonic() - began:.1f} s later")
    nothing_happened(scene, undisturbed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of its database
def test_mlflow_away_for_a_whole_stage_is_made_up_for_afterwards(scene, undisturbed, tmp_path):
    conductor = scene.conduct(PODIUM_MLFLOW_URI="http://127.0.0.1:9")
    assert conductor.ends() == 0, conductor.said()
    nothing_happened(scene, undisturbed)
    uri = f"sqlite:///{tmp_path}/later.db"
    scene.podium("sync", scene.run, "--store", scene.store, "--mlflow-uri", uri)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    trial = next(each for each in found if each.data.tags.get("variant") == "baseline" and "seed" in each.data.tags)
    points = client.get_metric_history(trial.info.run_id, "train_loss")
    print(f"MLflow was away; synced afterwards: {len(points)} points of train_loss")
    losses = [line for line in undisturbed[BASELINE]["losses"] if line["train_loss"] is not None]
    assert len(points) == len({point.step for point in points}) == len(losses)
