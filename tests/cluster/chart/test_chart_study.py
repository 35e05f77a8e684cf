"""The smoke study through what the chart installs: its rights, its configuration, its MLflow and S3.

Half way PostgreSQL is killed and stays away for a minute: nobody may notice but MLflow.
"""

import json
import os
import re
import subprocess
import time
import warnings
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from podium.components.register.step import register
from podium.components.study.run import Run
from podium.trainer.trial.sync import client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

AWAY_SECONDS = 60
STUDY = "param-allocation"


@pytest.fixture(scope="module")
def tracking_uri(installed, cluster):
    """The installed MLflow as a person reaches it from a laptop: by port-forward."""
    argv = ["kubectl", "--kubeconfig", cluster.kubeconfig, "-n", installed.namespace, "port-forward"]
    argv += [f"service/{installed.name}-podium-mlflow", ":5000"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as forward:
        try:
            said = forward.stdout.readline()
            yield f"http://localhost:{re.search(r'127.0.0.1:([0-9]+)', said)[1]}"
        finally:
            forward.terminate()


@pytest.fixture(scope="module")
def studied(installed, cluster, postgres):
    """The run, after it has ended; PostgreSQL was away in it."""
    store, database = installed.values["store"]["uri"], installed.values["mlflow"]["database"]["name"]
    command = ["podium", "run", STUDY, "--profile", "smoke", "--launcher", "job", "--store", store]
    installed.start_pod("conductor", *command)
    began = time.monotonic()
    while int(postgres.ask(database, "SELECT count(*) FROM runs WHERE name LIKE 'ranking/%'")) < 2:
        assert time.monotonic() - began < 900, installed.log("conductor")
        time.sleep(1)
    postgres.stop()
    print(f"PostgreSQL is killed {time.monotonic() - began:.0f} s after the run began")
    time.sleep(AWAY_SECONDS)
    phase = cluster.kubectl("-n", installed.runner, "get", "pod", "conductor", "-o", "jsonpath={.status.phase}")
    postgres.start()
    assert phase == "Running", "the run was to outlast the outage"
    log = installed.wait_for_pod("conductor", seconds=2400)
    print(f"the run ended {time.monotonic() - began:.0f} s after it began: {log.splitlines()[-1]}")
    return Run.open(store)


@pytest.fixture
def tree(studied, tracking_uri):
    """Name → run in MLflow, of everything below the study's run and of that itself."""
    experiment = client(tracking_uri).get_experiment_by_name(STUDY)
    found = client(tracking_uri).search_runs([experiment.experiment_id], max_results=1000)
    names = [each.info.run_name for each in found]
    assert len(set(names)) == len(names), "nothing is there twice"
    return dict(zip(names, found, strict=True))


def trials(run):
    """Name in MLflow → (trial, its result) of every trial that has one."""
    found = {}
    for stage in run.stages:
        for trial in run.trials(stage):
            result = run.result(trial.key)
            if result is not None:
                found[trial.key.folder.removeprefix("trials/")] = (trial, result)
    return found


def test_the_tree_in_mlflow_is_run_stage_trial_with_its_tags(studied, tree):
    top = tree[studied.id]
    assert top.data.tags["study"] == STUDY
    for name, (trial, result) in trials(studied).items():
        found, stage = tree[name], tree[trial.key.stage]
        assert found.data.tags["mlflow.parentRunId"] == stage.info.run_id
        assert stage.data.tags["mlflow.parentRunId"] == top.info.run_id
        for tag, value in (("study", STUDY), ("stage", trial.key.stage), ("variant", trial.key.variant)):
            assert found.data.tags[tag] == value
        assert found.data.tags["seed"] == str(trial.seed)
        assert found.data.tags["status"] == result.status
        assert found.data.tags["image"].startswith("podium/python-trainer:")
        assert found.info.status == "FINISHED"
    expected = {studied.id, *studied.stages, *trials(studied)}
    assert expected <= set(tree)
    assert {name for name in tree if not name.startswith("shakedown")} == expected


def test_no_point_is_lost_or_doubled_while_postgresql_is_away(studied, tree, tracking_uri):
    compared = 0
    for name, (trial, _) in trials(studied).items():
        text = studied.storage.read_text(f"{trial.key.folder}/metrics.jsonl")
        lines = [json.loads(line) for line in text.splitlines()]
        for metric in ("train_loss", "val_loss"):
            written = {line["step"]: line[metric] for line in lines if metric in line}
            sent = client(tracking_uri).get_metric_history(tree[name].info.run_id, metric)
            assert written, name
            assert sorted(point.step for point in sent) == sorted(written), f"{name}: {metric}"
            assert {point.step: point.value for point in sent} == written, f"{name}: {metric}"
            compared += len(sent)
    print(f"{compared} points of {len(trials(studied))} trials are in MLflow, each once")


def test_the_champion_loaded_from_the_registry_gives_the_loss_that_the_verdict_states(studied, tracking_uri):
    record = studied.read_json("registration.json")
    row = next(row for row in studied.verdict("finals").ranking if row.variant == record["variant"])
    stated = row.values[str(record["seed"])]
    assert record["loss"] == stated
    found = loaded(record["uri"], tracking_uri).evaluate(record["dataset"])["loss"]
    print(f"{record['uri']} version {record['version']}: {found!r}, the verdict states {stated!r}")
    assert found == pytest.approx(stated, abs=1e-6)
    version = client(tracking_uri).get_model_version(STUDY, record["version"])
    assert version.tags["podium.run_id"] == studied.id
    assert json.loads(version.tags["podium.verdict"])["winner"] == record["variant"]
    assert version.source.startswith(f"{studied.store_uri}/mlflow-artifacts"), "clients write to S3 themselves"


def test_the_report_is_in_mlflow_and_the_server_shows_artifacts_from_s3(studied, tree, installed):
    code = (
        "import sys, urllib.request as u; "
        "print(u.urlopen(f'{sys.argv[1]}/get-artifact?path=report/summary.md&run_uuid={sys.argv[2]}').read().decode())"
    )
    installed.start_pod("reads-report", "python", "-c", code, installed.mlflow_uri, tree[studied.id].info.run_id)
    shown = installed.wait_for_pod("reads-report")
    assert shown.strip() == studied.storage.read_text("report/summary.md").strip()


def test_an_earlier_champion_is_kept_and_can_still_be_loaded(studied, tracking_uri, monkeypatch):
    monkeypatch.setenv("PODIUM_MLFLOW_URI", tracking_uri)
    first = studied.read_json("registration.json")
    verdict = studied.verdict("finals")
    other = next(row.variant for row in verdict.ranking if row.variant != first["variant"])
    for proven, winner in ((True, first["variant"]), (True, other)):
        changed = verdict.model_copy(update={"proven": proven, "winner": winner, "claim": "proven"})
        studied.storage.write_json("verdicts/finals.json", changed.model_dump(mode="json"))
        studied.storage.delete("registration.json")
        assert register(studied.id, studied.store_uri) == f"models:/{STUDY}@champion"
    last = studied.read_json("registration.json")
    assert last["variant"] == other
    kept = last["displaced"]["version"]
    assert kept != last["version"]
    assert client(tracking_uri).get_model_version(STUDY, kept).tags["podium.variant"] == first["variant"]
    model = loaded(f"models:/{STUDY}/{kept}", tracking_uri)
    assert model.evaluate(first["dataset"])["loss"] == pytest.approx(first["loss"], abs=1e-6)


@contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of itself when it is imported
        yield


def loaded(uri, tracking_uri):
    """The Python model behind `models:/…`, fetched from S3 with this process's own credentials."""
    assert os.environ["AWS_ENDPOINT_URL"]
    # MLflow writes the address that it is told into the environment, where every later test would find it
    with quiet(), patch.dict(os.environ):
        import mlflow
        import mlflow.pyfunc

        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_registry_uri(tracking_uri)
        return mlflow.pyfunc.load_model(uri).unwrap_python_model()
