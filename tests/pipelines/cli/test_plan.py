"""plan, compile and submit: numbers and keys that scripts read, and refusals before anything is sent."""

import json
from pathlib import Path

import pytest
import yaml

from podium.components.study.load import load_study, shipped_studies

KEYS = {"trials", "gpu_hours", "usd", "usd_worst", "usd_naive", "stages"}
STAGE_KEYS = {"name", "trials", "gpu_hours", "usd"}


@pytest.mark.parametrize("study", sorted(shipped_studies()))
def test_every_shipped_study_is_planned_in_each_of_its_profiles(podium, study):
    profiles = json.loads(podium("validate", study, "--json").stdout)["profiles"]
    for profile in profiles:
        planned = json.loads(podium("plan", study, "--profile", profile, "--json").stdout)
        assert planned.keys() >= KEYS
        assert all(stage.keys() >= STAGE_KEYS for stage in planned["stages"])
        assert [stage["name"] for stage in planned["stages"]] == list(load_study(study, profile=profile).stages)
        assert planned["trials"] == sum(stage["trials"] for stage in planned["stages"])


@pytest.mark.parametrize("study", sorted(shipped_studies()))
def test_every_shipped_study_is_compiled(podium, study, tmp_path):
    out = tmp_path / "pipeline.yaml"
    made = podium("compile", study, "-o", out, "--store", "s3://bucket/runs", "--budget", "$200")
    assert made.exit_code == 0, made.output
    assert made.stdout.strip() == str(out)
    spec = next(iter(yaml.safe_load_all(out.read_text(encoding="utf-8"))))
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert inputs["store"]["defaultValue"] == "s3://bucket/runs"
    assert inputs["budget"]["defaultValue"] == "200"


def test_the_plan_says_what_the_rules_mean_and_what_is_saved(podium):
    shown = podium("plan", "param-allocation").stdout
    for word in ("6 × l40s", "naive plan", "saving against the naive plan", "worst case", "nats at PPL 300", "passes"):
        assert word in shown


def test_a_part_is_planned_as_a_part(podium):
    whole = json.loads(podium("plan", "param-allocation", "--json").stdout)
    part = json.loads(podium("plan", "param-allocation", "--stages", "ranking", "--axis", "embedding", "--json").stdout)
    assert [stage["name"] for stage in part["stages"]] == ["ranking"]
    assert part["stages"][0]["trials"] == 3 < whole["stages"][0]["trials"]


def test_more_seeds_cost_more(podium):
    one, five = (json.loads(podium("plan", "param-allocation", "--seeds", n, "--json").stdout) for n in (3, 5))
    assert five["stages"][1]["usd"] == pytest.approx(one["stages"][1]["usd"] * 5 / 3)


def test_compile_refuses_a_place_that_is_none(podium, tmp_path):
    refused = podium("compile", "param-allocation", "-o", tmp_path / "nowhere" / "pipeline.yaml")
    assert refused.exit_code == 2
    assert "--output" in refused.stderr
    assert not (tmp_path / "nowhere").exists()


def test_submit_needs_a_store_that_the_cluster_can_reach(podium):
    refused = podium("submit", "param-allocation", "--store", "runs", "--host", "http://127.0.0.1:9")
    assert refused.exit_code == 2
    assert "--store" in refused.stderr


def test_submit_to_nobody_is_one_clear_error(podium):
    refused = podium("submit", "param-allocation", "--store", "s3://bucket/runs", "--host", "http://127.0.0.1:9")
    assert refused.exit_code == 2
    assert "http://127.0.0.1:9" in refused.stderr
    assert "Traceback" not in refused.output


def test_the_speedruns_plan_is_its_worked_example(podium):
    """Systems/speedrun.md: $16 + $30 + $42, naive $168, a pivot to $118 that can't be paid."""
    planned = json.loads(podium("plan", "speedrun", "--json").stdout)
    assert (planned["usd"], planned["usd_naive"], planned["usd_worst"]) == (88, 168, 118)
    assert [(stage["usd"], stage["trials"]) for stage in planned["stages"]] == [(16, 8), (30, 3), (42, 5)]
    assert (planned["shakedown"]["usd"], planned["evaluation"]["usd"]) == (0, 0)
    assert planned["branches"][-1] == {"name": "pivot in b", "usd": 118, "affordable": False}
    ran = json.loads(podium("plan", "speedrun", "--baseline", "run", "--json").stdout)
    assert [stage["usd"] for stage in ran["stages"]] == [16, 60, 84]
    text = shipped_studies()["speedrun"].read_text(encoding="utf-8")
    Path("dearer.yaml").write_text(text.replace("usd_per_run: 10,", "usd_per_run: 11,"), encoding="utf-8")
    assert json.loads(podium("plan", "dearer.yaml", "--json").stdout)["usd"] == 91


def test_a_debug_run_is_one_trial_on_one_gpu(podium):
    shown = podium("plan", "speedrun", "--stages", "A", "--variants", "palm", "--seeds", 1, "--gpus", 1, "--json")
    (stage,) = json.loads(shown.stdout)["stages"]
    assert (stage["name"], stage["trials"], stage["gpus"]) == ("a", 2, 1), "palm and the baseline"
