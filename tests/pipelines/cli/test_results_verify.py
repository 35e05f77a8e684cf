"""verify: every number of a verdict, recomputed."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def place(make_run):
    run = make_run()
    return run, Path(run.storage.local_path("verdicts/proof.json"))


def test_a_verdict_of_a_run_is_recomputed(podium, place):
    run, path = place
    found = podium("verify", path, "--json")
    assert found.exit_code == 0, found.output
    plain = json.loads(found.stdout)
    assert (plain["ok"], plain["stage"], plain["trials"]) == (True, "proof", 4)
    assert plain["numbers"] > 40
    assert "all agree" in podium("verify", run.storage.local_path("verdicts/ranking.json")).stdout


def changed(path, change):
    verdict = json.loads(path.read_text())
    change(verdict)
    path.write_text(json.dumps(verdict))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda v: v["test"].update(p=v["test"]["p"] * 1.001), "test.p"),
        (lambda v: v["ranking"][1].update(mean=1.0), "ranking.1.mean"),
        (lambda v: v.update(winner="baseline"), "winner"),
        (lambda v: v.update(claim="candidate", proven=False), "proven"),
        (lambda v: v["promoted"].clear(), "promoted"),
        (lambda v: v["counts"].update(completed=5), "counts.completed"),
    ],
)
def test_a_number_that_was_changed_is_found(podium, place, change, where):
    changed(place[1], change)
    found = podium("verify", place[1])
    assert found.exit_code == 3
    assert f"{where}: the file says" in found.stdout


def test_inputs_that_are_not_what_the_trials_gave_are_found(podium, place):
    changed(place[1], lambda v: v["results"]["outcomes"][0].update(value=1.2345))
    found = podium("verify", place[1])
    assert found.exit_code == 3
    assert "inputs: proof/baseline/seed-52" in found.stdout


def test_what_is_no_verdict_is_refused(podium, place, tmp_path):
    alone = tmp_path / "alone.json"
    alone.write_text(place[1].read_text())
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    for path, said in ((alone, "study.yaml"), (wrong, "is no verdict"), (tmp_path / "none.json", "must be a verdict")):
        refused = podium("verify", path)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
