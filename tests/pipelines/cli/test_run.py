"""podium run: what it says and returns, without training anything."""

import json
from pathlib import Path

import pytest

from podium.components.study import layout
from podium.components.study.fingerprint import run_id
from podium.components.study.run import Run
from podium.pipelines.cli.run import summarise


def files(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


def test_a_run_that_is_complete_says_so_at_once_and_repeats_nothing(podium, make_run, study):
    run = make_run()
    podium("report", run.uri)
    trials = files(run.uri.removeprefix("file://"))
    ran = podium("run", study, "--store", run.store_uri)
    assert ran.exit_code == 0, ran.output
    assert "nothing is left to do" in ran.stderr
    proof = run.verdict("proof")
    last = ran.stdout.splitlines()[-1]
    assert last.startswith(f"winner: {proof.winner} · {proof.claim}: final_val_loss 1.5")
    assert last.endswith("/report/index.html")
    assert files(run.uri.removeprefix("file://")) == trials


def test_json_is_one_object_and_everything_else_goes_to_stderr(podium, make_run, study):
    run = make_run()
    ran = podium("run", study, "--store", run.store_uri, "--json")
    concluded = json.loads(ran.stdout)
    assert concluded["run_id"] == run.id
    assert concluded["exit_code"] == ran.exit_code == 0
    assert concluded["winner"] == run.verdict("proof").winner


def test_a_run_stopped_by_its_verdict_returns_three(podium, make_run, study):
    run = make_run("ranking")
    verdict = run.verdict("ranking").model_copy(
        update={"decision": "stop", "promoted": [], "reason": "stop: no baseline"}
    )
    run.storage.write_json(layout.verdict_key("ranking"), verdict.model_dump(mode="json"))
    ran = podium("run", study, "--store", run.store_uri)
    assert ran.exit_code == 3
    assert ran.stdout.splitlines()[-1] == "winner: none · stop: no baseline · report: none yet"


@pytest.mark.parametrize(
    ("until", "words"),
    [("start", "no verdict yet"), ("ranking", "ranking promotes 2"), ("registered", "final_val_loss 1.5")],
)
def test_the_summary_claims_no_winner_before_the_last_verdict(make_run, until, words):
    found = summarise(make_run(until))
    assert words in found["verdict"]
    assert (found["winner"] is not None) == (until == "registered")


def test_a_failed_gate_is_told_with_its_reason(make_run):
    run = make_run("start")
    run.storage.write_json(layout.SHAKEDOWN, {"passed": False, "reason": "the loss is not finite"})
    assert summarise(run)["verdict"] == "the shakedown failed: the loss is not finite"


def test_a_dry_run_prints_every_command_and_writes_nothing(podium, study, tmp_path):
    before = files(tmp_path)
    shown = podium("run", study, "--store", "store", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert files(tmp_path) == before
    planned = json.loads(podium("run", study, "--store", "store", "--dry-run", "--json").stdout)
    assert files(tmp_path) == before
    ranking, proof = planned["stages"]
    assert [trial["trial"] for trial in ranking["commands"]] == [
        "ranking/baseline/seed-42",
        "ranking/rate-0.01/seed-42",
    ]
    assert proof["commands"] == []
    for trial in ranking["commands"]:
        assert trial["argv"][-1].endswith(f"/trials/{trial['trial']}")
        assert trial["argv"][-1] in shown.stdout
        assert (trial["device"], trial["usd"]) == ("CPU", pytest.approx(1 / 60))
    made = Run.create("store", _load(study))
    assert planned["run_id"] == made.id == run_id(made.study, made.registered.datasets.values())


def test_a_dry_run_names_the_gpus_that_it_would_take(podium, study):
    shown = podium("run", study, "--gpus", "4", "--dry-run", "--json")
    planned = json.loads(shown.stdout)
    assert [(stage["gpus"], stage["parallel"]) for stage in planned["stages"]] == [(4, 4), (4, 4)]
    assert planned["stages"][0]["commands"][0]["device"] == "1 × GPU"


def test_the_data_alone_can_be_prepared(podium, study, tmp_path):
    prepared = podium("run", study, "--store", "store", "--stages", "data")
    assert prepared.exit_code == 0, prepared.output
    place = Path(prepared.stdout.strip().removeprefix("file://"))
    assert (place / "manifest.json").exists()
    stamps = files(place)
    assert podium("run", study, "--store", "store", "--stages", "data").stdout == prepared.stdout
    assert files(place) == stamps
    assert not (tmp_path / "work" / "store" / "runs").exists()


def _load(path):
    from podium.components.study.load import load_study

    return load_study(str(path))
