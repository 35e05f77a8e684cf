"""status, list, logs, compare: what they say is what the store has."""

import json
import time
from pathlib import Path

import pytest

from podium.components.study import layout
from podium.trainer.trial.lease import Lease

STAGE_KEYS = ["name", "trials", "finished", "killed", "broken", "decision"]


def test_status_of_a_finished_run_has_the_keys_that_scripts_read(podium, make_run):
    run = make_run()
    for place in (run.store_uri, run.uri, run.store_uri.removeprefix("file://")):
        state = json.loads(podium("status", place, "--json").stdout)
        assert list(state) == ["study", "run_id", "state", "stages", "waiting", "champion"]
        assert (state["study"], state["run_id"], state["state"]) == ("tiny", run.id, "succeeded")
        assert [list(stage) for stage in state["stages"]] == [STAGE_KEYS] * 2
        assert [(stage["trials"], stage["finished"]) for stage in state["stages"]] == [(2, 2), (4, 4)]
        assert list(state["champion"]) == ["variant", "proven", "alias", "metric", "value"]


def test_status_takes_an_id_with_a_store_and_says_which_ids_there_are(podium, make_run):
    run = make_run("ranking")
    assert run.id in podium("status", run.id, "--store", run.store_uri).stdout
    refused = podium("status", "tiny-00000000", "--store", run.store_uri)
    assert refused.exit_code == 2
    assert run.id in refused.stderr


def test_status_shows_each_verdict_with_its_reason(podium, make_run):
    run = make_run("ranking")
    shown = podium("status", run.uri)
    assert "incomplete" in shown.stdout
    assert run.verdict("ranking").reason[:40] in shown.stdout


def test_a_running_trial_is_shown_with_its_loss_and_speed(podium, make_run):
    run = make_run("start")
    trial = run.trials("ranking")[0]
    run.storage.write_json(layout.SHAKEDOWN, {"passed": True})
    line = {"step": 4, "tokens": 512, "train_loss": 3.25, "train_seconds": 2.0}
    run.storage.write_text(f"{trial.key.folder}/metrics.jsonl", json.dumps(line) + "\n")
    run.storage.write_text(f"{trial.key.folder}/{layout.LEASE}", "{}")
    with Lease(run.storage, layout.LEASE, what="run"):
        shown = podium("status", run.uri).stdout
    for word in ("running", trial.key.name, "loss 3.250", "256 tokens/s", "ranking: training"):
        assert word in shown


def test_list_shows_every_run_of_a_store_the_newest_last(podium, make_run, study, text):
    first = make_run()
    study.write_text(text.replace("steps: 8", "steps: 16"))
    time.sleep(0.01)
    second = make_run("ranking")
    listed = json.loads(podium("list", "--store", first.store_uri, "--json").stdout)["runs"]
    assert [run["run_id"] for run in listed] == [first.id, second.id]
    assert second.id in podium("list", "--store", first.store_uri).stdout.splitlines()[-1]
    assert json.loads(podium("status", first.store_uri, "--json").stdout)["run_id"] == second.id


def test_logs_are_listed_and_printed(podium, make_run):
    run = make_run("ranking")
    assert "ranking/baseline-seed-42.log" in podium("logs", run.uri).stdout.splitlines()
    for name in ("ranking/baseline/seed-42", "ranking/baseline-seed-42", "baseline"):
        assert podium("logs", run.uri, name).stdout == "first line of ranking/baseline/seed-42\nlast line\n"
    assert podium("logs", run.uri, "baseline", "--follow").stdout.endswith("last line\n")


@pytest.mark.parametrize("trial", ["nothing", "seed-42"])
def test_a_log_that_is_not_one_is_refused_with_those_there_are(podium, make_run, trial):
    refused = podium("logs", make_run("ranking").uri, trial)
    assert refused.exit_code == 2
    assert "ranking/baseline-seed-42.log" in refused.stderr


def test_compare_puts_runs_side_by_side(podium, make_run, study, text):
    first = make_run()
    study.write_text(text.replace("steps: 8", "steps: 16"))
    second = make_run("ranking")
    rows = json.loads(podium("compare", first.uri, second.uri, "--json").stdout)["runs"]
    assert [(row["run"], row["stage"]) for row in rows] == [(first.id, "proof"), (second.id, "ranking")]
    proof = first.verdict("proof")
    assert rows[0]["winner"] == proof.winner
    assert rows[0]["mean"] == next(arm.mean for arm in proof.ranking if arm.variant == proof.winner)
    assert first.id in podium("compare", first.uri).stdout


def test_compare_tests_the_final_figures_of_two_runs(podium, make_run, study, text):
    first = make_run()
    study.write_text(text.replace("steps: 8", "steps: 16"))
    second = make_run(losses={"baseline": 2.0, "rate-0.01": 1.9})
    found = json.loads(podium("compare", first.uri, second.uri, "--json").stdout)["comparison"]
    assert found["difference"] == pytest.approx(0.4)
    assert (found["a"]["n"], found["b"]["n"]) == (2, 2)
    assert f"{found['difference']:+.4f}" in podium("compare", first.uri, second.uri).stdout.splitlines()[-1]


def test_compare_takes_files_of_numbers(podium):
    for name, numbers in (("a.txt", "1.0\n1.1\n0.9\n"), ("b.json", "[2.0, 2.1, 1.9]")):
        Path(name).write_text(numbers, encoding="utf-8")
    found = json.loads(podium("compare", "a.txt", "b.json", "--json").stdout)
    assert found["runs"] == []
    assert found["comparison"]["difference"] == pytest.approx(1.0)
    assert found["comparison"]["p"] < 0.001
