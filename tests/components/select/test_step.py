import json

import pytest

from podium.components.select.step import select
from podium.components.study.design import Selection
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.trainer.trial.result import Status

SCREEN = {"baseline": [3.0], "wide": [2.5], "narrow": [3.5]}


def call(run, stage, selection=""):
    return select(run.id, run.store_uri, stage, selection)


def checkpoints(run, stage, variant, seed):
    folder = f"trials/{stage}/{variant}/seed-{seed}/checkpoints"
    return [key.rpartition("/")[2] for key in run.storage.list(folder)]


def test_the_verdict_is_written_shown_and_in_the_ledger(two_stage_run, finish):
    run = two_stage_run
    finish(run, "screen", **SCREEN)
    selected = call(run, "screen")
    assert selected.decision == "promote"
    verdict = run.verdict("screen")
    assert [ref.name for ref in verdict.promoted] == ["wide", "baseline"]
    assert "wide" in selected.markdown
    assert "<html" in selected.html.lower()
    assert selected.html == run.storage.read_text("report/index.html")
    assert [entry.key for entry in run.ledger.entries("verdict")] == ["screen/promote"]


def test_the_numbers_are_the_best_arms_first_and_what_is_missing_is_left_out(two_stage_run, finish):
    finish(two_stage_run, "screen", **SCREEN)
    numbers = call(two_stage_run, "screen").metrics
    assert list(numbers)[:3] == ["final_val_loss wide", "final_val_loss baseline", "final_val_loss narrow"]
    assert numbers["difference to baseline"] == pytest.approx(-0.5)
    assert numbers["trials completed"] == 3
    assert numbers["spent usd"] == pytest.approx(1.5)
    assert "p" not in numbers, "one seed has no test"
    assert all(isinstance(value, int | float) for value in numbers.values())


def test_a_verdict_that_is_there_is_given_again_and_not_touched(two_stage_run, finish):
    finish(two_stage_run, "screen", **SCREEN)
    first = call(two_stage_run, "screen")
    written = two_stage_run.storage.read_bytes("verdicts/screen.json")
    finish(two_stage_run, "screen", baseline=[1.0], wide=[2.5], narrow=[3.5])
    again = call(two_stage_run, "screen")
    assert (again.decision, again.markdown) == (first.decision, first.markdown)
    assert two_stage_run.storage.read_bytes("verdicts/screen.json") == written
    assert len(two_stage_run.ledger.entries("verdict")) == 1


def test_full_checkpoints_stay_for_who_goes_on_and_weights_for_everybody(two_stage_run, finish):
    finish(two_stage_run, "screen", **SCREEN)
    call(two_stage_run, "screen")
    weights = ["best-model.safetensors", "final-model.safetensors"]
    full = ["ckpt-step-10.pt", "ckpt-step-5.pt"]
    assert checkpoints(two_stage_run, "screen", "narrow", 42) == weights
    assert sorted(checkpoints(two_stage_run, "screen", "wide", 42)) == sorted(weights + full)
    assert sorted(checkpoints(two_stage_run, "screen", "baseline", 42)) == sorted(weights + full)


def test_a_stage_whose_baseline_diverged_stops(two_stage_run, finish):
    finish(two_stage_run, "screen", wide=[2.5], narrow=[3.5])
    finish(two_stage_run, "screen", status=Status.DIVERGED, baseline=[9.9])
    selected = call(two_stage_run, "screen")
    assert selected.decision == "stop"
    assert "no baseline" in selected.markdown
    assert two_stage_run.storage.exists("report/index.html"), "the report exists when nothing won"


@pytest.mark.parametrize(
    "selection",
    [Selection(stages=("prove",)), Selection(variants=("wide",))],
    ids=["another stage", "some of its variants"],
)
def test_a_part_of_a_stage_decides_nothing_and_leaves_nothing_final(two_stage_run, finish, selection):
    finish(two_stage_run, "screen", baseline=[3.0], wide=[2.5])
    selected = call(two_stage_run, "screen", selection.to_json())
    assert selected.decision == "partial"
    assert "no verdict" in selected.markdown
    assert two_stage_run.verdict("screen") is None
    assert two_stage_run.ledger.entries("verdict") == []
    assert "ckpt-step-10.pt" in checkpoints(two_stage_run, "screen", "wide", 42)


def test_the_last_missing_part_completes_the_stage(two_stage_run, finish):
    finish(two_stage_run, "screen", **SCREEN)
    assert call(two_stage_run, "screen", Selection(variants=("narrow",)).to_json()).decision == "promote"


def test_a_stage_that_was_selected_whole_is_decided(two_stage_run, finish):
    finish(two_stage_run, "screen", **SCREEN)
    assert call(two_stage_run, "screen", Selection(stages=("screen",)).to_json()).decision == "promote"


def test_a_cancelled_run_gets_no_verdict(two_stage_run, finish):
    finish(two_stage_run, "screen", **SCREEN)
    two_stage_run.storage.write_json("cancel.json", {"why": "changed my mind"})
    assert call(two_stage_run, "screen").decision == "cancelled"
    assert two_stage_run.verdict("screen") is None


def test_a_stage_of_which_nothing_has_a_figure_stops(two_stage_run, finish):
    finish(two_stage_run, "screen", status=Status.BROKEN, **SCREEN)
    selected = call(two_stage_run, "screen")
    assert selected.decision == "stop"
    assert not any(name.startswith("final_val_loss") for name in selected.metrics), "no figure is made up"


def test_approval_keeps_checkpoints_and_promotes_nobody_yet(tmp_path, two_stages, finish):
    text = two_stages.replace("  prove:\n", "    approval: required\n  prove:\n", 1)
    run = Run.create(str(tmp_path / "store"), load_study(text))
    finish(run, "screen", **SCREEN)
    assert call(run, "screen").decision == "await"
    assert "ckpt-step-10.pt" in checkpoints(run, "screen", "narrow", 42)
    assert json.loads(run.storage.read_text("verdicts/screen.json"))["decision"] == "await"
