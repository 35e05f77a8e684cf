"""Submitting, against an API of Kubeflow's shapes; with PODIUM_KFP_HOST against a real one."""

import json

import pytest
import yaml

from podium import submit
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import open_kubeflow
from podium.trainer.trial.errors import UserError


def test_a_study_is_started_with_its_inputs_and_the_runs_link_comes_back(kfp):
    made = submit("param-allocation", kfp.host, store="s3://bucket/p", profile="smoke")
    assert made.name == "param-allocation smoke"
    assert made.link == f"{kfp.host}/#/runs/details/{made.id}"
    with open_kubeflow(Address(host=kfp.host)) as kubeflow:
        found = kubeflow.run(made.id)
    assert (found.name, found.store) == ("param-allocation smoke", "s3://bucket/p")
    assert not found.has_ended


def test_the_run_carries_the_pipeline_with_its_text_and_states_every_other_input(kfp):
    made = submit("param-allocation", kfp.host, store="s3://bucket/p", profile="smoke", token="secret")
    run = kfp.state.runs[made.id]
    (experiment,) = kfp.state.experiments.values()
    assert experiment["display_name"] == "param-allocation"
    assert all(authorization == "Bearer secret" for _, _, authorization in kfp.state.requests)
    spec = run["pipeline_spec"]["pipeline_spec"]
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert yaml.safe_load(inputs["study"]["defaultValue"])["name"] == "param-allocation"
    assert "kubernetes" in run["pipeline_spec"]["platform_spec"]["platforms"]
    told = run["runtime_config"]["parameters"]
    assert set(told) == set(inputs) - {"study"}
    assert (told["store"], told["profile"], told["gpus_ranking"]) == ("s3://bucket/p", "smoke", "0")
    assert len(json.dumps(told)) < 65_535, "what Kubeflow's database holds of a run's inputs"


def test_a_second_submit_takes_the_experiment_that_is_there(kfp):
    for _ in range(2):
        submit("param-allocation", kfp.host, store="s3://bucket/p")
    assert len(kfp.state.experiments) == 1
    submit("param-allocation", kfp.host, store="s3://bucket/p", experiment="mine")
    assert len(kfp.state.experiments) == 2


def test_an_expired_token_is_one_clear_error(kfp):
    kfp.state.tokens = ("good",)
    with pytest.raises(UserError) as refused:
        submit("param-allocation", kfp.host, store="s3://bucket/p", token="expired")
    message = str(refused.value)
    assert "refused" in message
    assert "401: the token has expired or is not accepted: get a new one" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="it wants to know who asks"):
        submit("param-allocation", kfp.host, store="s3://bucket/p")
    assert submit("param-allocation", kfp.host, store="s3://bucket/p", token="good").id


def test_an_unreachable_host_is_one_clear_error(kfp):
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9 can't be reached: .*refused[^\n]*$"):
        submit("param-allocation", "http://127.0.0.1:9", store="s3://bucket/p")
    with pytest.raises(UserError, match=r"^http://nowhere.invalid can't be reached: [^\n]*$"):
        submit("param-allocation", "http://nowhere.invalid", store="s3://bucket/p")


def test_an_unknown_namespace_is_one_clear_error(kfp):
    kfp.state.multi_user, kfp.state.namespaces = True, ("me",)
    with pytest.raises(UserError, match=r"in namespace other: 403: .*another's or does not exist[^\n]*$"):
        submit("param-allocation", kfp.host, store="s3://bucket/p", namespace="other")
    with pytest.raises(UserError, match="--namespace: is needed"):
        submit("param-allocation", kfp.host, store="s3://bucket/p")
    assert submit("param-allocation", kfp.host, store="s3://bucket/p", namespace="me").id


def test_a_namespace_for_a_kubeflow_of_one_user_is_refused(kfp):
    with pytest.raises(UserError, match=r"--namespace: must be left out.*got 'me'"):
        submit("param-allocation", kfp.host, store="s3://bucket/p", namespace="me")


def test_no_address_outside_a_cluster_says_how_to_give_one(kfp, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match=r"--host: where is Kubeflow's API\?.*--port-forward"):
        submit("param-allocation", store="s3://bucket/p")


def test_the_command_prints_the_link_and_how_to_follow(kfp, podium_cli):
    found = podium_cli(
        "submit",
        "param-allocation",
        "--profile",
        "smoke",
        "--store",
        "s3://bucket/p",
        "--host",
        kfp.host,
        "--priority",
        "x",
    )
    assert found.exit_code == 0, found.output
    (link,) = found.stdout.splitlines()
    run_id = link.rpartition("/")[2]
    assert f"podium status {run_id} --store s3://bucket/p" in found.stderr
    assert kfp.state.runs[run_id]["runtime_config"]["parameters"]["priority"] == "x"


def test_the_command_submits_a_part_with_other_seeds_and_gpus(kfp, podium_cli):
    arguments = ["--store", "s3://bucket/p", "--host", kfp.host, "--stages", "ranking", "--gpus", "2", "--json"]
    found = podium_cli("submit", "param-allocation", *arguments)
    assert found.exit_code == 0, found.output
    run = kfp.state.runs[json.loads(found.stdout)["id"]]
    told = run["runtime_config"]["parameters"]
    assert (told["gpus_ranking"], told["gpus_finals"]) == ("2", "2")
    assert json.loads(told["selection"])["stages"] == ["ranking"]
    text = run["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]["study"]["defaultValue"]
    assert yaml.safe_load(text)["stages"]["ranking"]["resources"]["parallel"] == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--store", "runs"], "--store"),
        ([], "--store"),
        (["--store", "s3://bucket/p", "--data", "README.md"], "data.corpus"),
        (["--store", "s3://bucket/p", "--profile", "smok"], "smok"),
        (["--store", "s3://bucket/p", "--host", "http://127.0.0.1:9", "--port-forward"], "--port-forward"),
        (["--store", "s3://bucket/p", "--username", "me"], "--username"),
        (["--store", "s3://bucket/p", "--installation", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_a_cluster_can_not_take_is_refused_with_its_name(kfp, podium_cli, arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("words " * 1000)
    refused = podium_cli("submit", "param-allocation", *arguments)
    assert refused.exit_code == 2, refused.output
    assert word in refused.stderr
    assert refused.stdout == ""
