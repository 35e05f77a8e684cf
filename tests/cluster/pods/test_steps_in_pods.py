"""Every step of a compiled pipeline in a pod of its own, as a KFP executor runs it: they share the store, no more."""

from __future__ import annotations

import json

import pytest
import yaml

# With the smoke study's test on one worker: both read the run that `in_pods` makes once.
pytestmark = [pytest.mark.cluster, pytest.mark.core, pytest.mark.timeout(1500)]

TRAINER_STEPS = {"Shakedown", "ranking: train", "finals: train", "Evaluate"}


def test_every_step_runs_in_the_order_that_the_conditions_allow(in_pods):
    print(
        f"{in_pods.seconds:.0f} s in all; " + ", ".join(f"{step.name} {step.seconds:.0f} s" for step in in_pods.steps)
    )
    assert [step.name for step in in_pods.steps] == [
        *("Prepare data", "Shakedown", "ranking: train", "ranking: verdict", "finals: train", "finals: verdict"),
        *("Evaluate", "Register", "Report"),
    ]


def test_each_step_ran_on_the_image_that_the_pipeline_names(in_pods, cluster):
    spec = next(yaml.safe_load_all(in_pods.pipeline.read_text(encoding="utf-8")))
    compiled = {each["container"]["image"] for each in spec["deploymentSpec"]["executors"].values()}
    assert compiled == {cluster.steps_image, cluster.trainer_image}
    for step in in_pods.steps:
        assert step.image == (cluster.trainer_image if step.name in TRAINER_STEPS else cluster.steps_image), step.name


def test_steps_hand_over_by_outputs_that_are_small_and_by_the_store(in_pods):
    by_name = {step.name: step for step in in_pods.steps}
    run = by_name["Prepare data"].outputs["Output"]
    assert all(step.inputs["run"] == run for name, step in by_name.items() if name != "Prepare data")
    assert by_name["Shakedown"].outputs == {"Output": "pass"}
    assert by_name["ranking: train"].outputs == {"Output": "3/3"}
    assert by_name["ranking: verdict"].outputs == {"Output": "promote"}
    assert by_name["finals: verdict"].outputs == {"Output": "promote"}
    finalists = by_name["Evaluate"].outputs["Output"].split(",")
    assert in_pods.stored.winner in finalists
    assert by_name["Register"].outputs["Output"].startswith("models:/param-allocation@")
    assert len(json.dumps([step.outputs for step in in_pods.steps])) < 2000


def test_every_page_that_the_kubeflow_ui_shows_was_written(in_pods):
    pages = {(step.name, artifact): size for step in in_pods.steps for artifact, size in step.artifacts.items()}
    assert {name for name, _ in pages} >= {"Shakedown", "ranking: verdict", "finals: verdict", "Evaluate", "Report"}
    # `numbers` are metrics: in the executor's metadata, not in a file.
    empty = [page for page, size in pages.items() if page[1] != "numbers" and not size]
    assert not empty


def test_the_run_is_whole(in_pods):
    statuses = {trial: result["status"] for trial, result in in_pods.stored.results.items()}
    assert len([trial for trial in statuses if trial.startswith("ranking/")]) == 3
    assert len([trial for trial in statuses if trial.startswith("finals/")]) >= 4
    assert set(statuses.values()) <= {"completed", "killed"}
    assert {"report/index.html", "report/summary.md", "report/results.csv"} <= in_pods.stored.keys


def test_results_name_the_image_and_commit_that_made_them(in_pods, cluster):
    for trial, result in in_pods.stored.results.items():
        assert result["versions"]["image"] == cluster.trainer_image, trial
        assert len(result["versions"]["commit"].removesuffix("-dirty")) == 40, trial


def test_a_step_killed_without_a_signal_goes_on_where_it_was(in_pods):
    assert in_pods.killed == ["ranking: train"]
    assert [step.pods for step in in_pods.steps if step.name == "ranking: train"] == [2]
    assert [step.pods for step in in_pods.steps if step.name != "ranking: train"] == [1] * 8


def test_mlflow_is_where_the_configuration_says(in_pods, cluster):
    """The tree of runs and the registered model are on the server in the cluster, which only the ConfigMap names."""
    code = (
        "import json, mlflow\n"
        "client = mlflow.MlflowClient('http://localhost:5000')\n"
        "experiments = client.search_experiments()\n"
        "runs = client.search_runs([each.experiment_id for each in experiments])\n"
        "trials = [run.data.tags for run in runs if 'variant' in run.data.tags]\n"
        "models = {model.name: sorted(model.aliases) for model in client.search_registered_models()}\n"
        "told = {'trials': [[t.get('stage'), t['variant'], t.get('seed')] for t in trials], 'models': models}\n"
        "print(json.dumps(told))\n"
    )
    shown = cluster.kubectl("-n", in_pods.namespace, "exec", "mlflow", "--", "python", "-c", code)
    told = json.loads(shown.splitlines()[-1])
    assert list(told["models"]) == ["param-allocation"]
    assert told["models"]["param-allocation"] in (["candidate"], ["champion"])
    logged = {f"{stage}/{variant}/seed-{seed}" for stage, variant, seed in told["trials"]}
    assert in_pods.stored.results.keys() <= logged


def test_no_credential_is_in_the_pipeline_or_in_what_the_run_left(in_pods, cluster):
    assert cluster.secret_key not in in_pods.pipeline.read_text(encoding="utf-8")
    assert cluster.secret_key not in json.dumps([step.inputs for step in in_pods.steps])
    bucket, _, prefix = in_pods.store.removeprefix("s3://").partition("/")
    listed = cluster.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/runs/")
    texts = (".json", ".jsonl", ".yaml", ".log", ".html", ".md", ".csv", ".txt")
    read = 0
    for entry in (each for page in listed for each in page.get("Contents", []) if each["Key"].endswith(texts)):
        body = cluster.s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        assert cluster.secret_key.encode() not in body, entry["Key"]
        read += 1
    assert read > 20
