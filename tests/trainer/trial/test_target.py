"""Runs to a target: where they stop, what they time, and that a stopped one goes on to a tighter target."""

from __future__ import annotations

import json
import time

import pytest

from podium.trainer.builtin import loop, run
from podium.trainer.builtin.evaluation import perplexity
from podium.trainer.builtin.run import train
from podium.trainer.trial.result import Crossing, Point, Status, curve_of, read_lines
from podium.trainer.trial.stopping import StopRules, TargetRule, crossings, first_stop, is_near
from podium.trainer.trial.storage import open_storage


def curve(*losses):
    return [
        Point(step=10 * i, tokens=1000 * i, val_loss=loss, train_seconds=float(i)) for i, loss in enumerate(losses, 1)
    ]


RULE = TargetRule(loss=5.0, also=[5.5, 4.8])


def test_the_first_evaluation_under_the_target_stops_the_run():
    stop = first_stop(curve(6.0, 5.0, 4.99, 4.5), None, StopRules(target=RULE))
    assert stop is not None
    assert (stop.rule, stop.tokens, stop.status) == ("target", 3000, Status.TARGET_REACHED)
    assert "4.9900 is under the target 5" in stop.reason


def test_every_declared_target_has_its_first_crossing_or_none():
    assert crossings(curve(6.0, 5.4, 5.6, 4.9), RULE) == [
        Crossing(loss=5.5, step=20, tokens=2000, seconds=2.0),
        Crossing(loss=5.0, step=40, tokens=4000, seconds=4.0),
        Crossing(loss=4.8),
    ]


@pytest.mark.parametrize(
    ("losses", "train_loss", "near"),
    [
        ([6.0], 6.1, False),  # 0.5 above the first target
        ([5.7], 6.1, True),  # the evaluation is near
        ([6.0], 5.7, True),  # the training loss is, though the last evaluation was long ago
        ([5.4], 5.45, False),  # 5.5 is crossed, 5.0 is 0.4 away
        ([5.2], 5.3, True),
        ([4.7], 4.7, False),  # all are crossed
        ([], 5.6, True),
        ([None], None, False),
    ],
)
def test_near_is_a_quarter_nat_above_the_next_target(losses, train_loss, near):
    assert is_near(curve(*losses), train_loss, RULE) is near


def read_result(folder):
    return json.loads((folder / "result.json").read_text())


def points_of(folder):
    return curve_of(read_lines((folder / "metrics.jsonl").read_text()))


def run_to(folder, spec):
    return train(spec, open_storage(str(folder)))


LONG = {"max_steps": 400, "evaluation": {"every_steps": 20, "sequences": 32}, "checkpoint": {"every_steps": 400}}


def target(loss, **more):
    return {"target": {"loss": loss, "near": 0.1, "near_every_steps": 2, **more}}


def test_a_run_ends_at_its_target_with_every_crossing_on_the_clock(tmp_path, tiny_spec):
    result = run_to(tmp_path / "a", tiny_spec(**LONG, stop=target(3.0, also=[3.5, 0.5])))
    assert result.status is Status.TARGET_REACHED
    assert (result.target_loss, result.reached_target) == (3.0, True)
    points = points_of(tmp_path / "a")
    assert points[-1].val_loss < 3.0
    assert all(point.val_loss >= 3.0 for point in points[:-1])
    assert result.time_to_target_seconds == points[-1].train_seconds
    higher, reached, never = result.targets
    assert (higher.loss, reached.loss, never.loss) == (3.5, 3.0, 0.5)
    assert 0 < higher.seconds < reached.seconds == result.time_to_target_seconds
    assert (never.step, never.tokens, never.seconds) == (None, None, None)
    assert result.final_val_loss == points[-1].val_loss


def test_evaluations_are_dense_near_a_target_and_nowhere_else(tmp_path, tiny_spec):
    run_to(tmp_path / "a", tiny_spec(**LONG, stop=target(3.0)))
    steps = [point.step for point in points_of(tmp_path / "a")]
    assert steps[-1] % 20, "the target was crossed between two regular evaluations"
    dense = [step for step in steps if step % 20]
    assert all(step % 2 == 0 for step in steps)
    lines = read_lines((tmp_path / "a" / "metrics.jsonl").read_text())
    train_loss = {line["step"]: line["train_loss"] for line in lines if "train_loss" in line}
    last_val = None
    for point in points_of(tmp_path / "a"):
        if point.step in dense:
            assert min(x for x in (train_loss[point.step], last_val) if x is not None) <= 3.1
        last_val = point.val_loss


@pytest.mark.parametrize(
    ("changes", "how"),
    [({"max_steps": 12}, "all 12 steps done"), ({"stop": {"timeout_seconds": 0.001}}, "0.001 s of training")],
)
def test_a_run_without_the_target_has_missed_it_and_has_no_time(tmp_path, tiny_spec, changes, how):
    stop = target(0.1) | changes.get("stop", {})
    result = run_to(tmp_path / "a", tiny_spec(**{**LONG, **changes, "stop": stop}))
    assert result.status is Status.MISSED_TARGET
    assert how in result.reason
    assert "the best was" in result.reason
    assert (result.reached_target, result.time_to_target_seconds) == (False, None)
    assert result.training_seconds > 0
    assert result.final_val_loss is not None


def test_a_run_without_a_target_says_nothing_of_one(tmp_path, tiny_spec):
    result = run_to(tmp_path / "a", tiny_spec())
    assert (result.target_loss, result.reached_target, result.targets) == (None, None, [])
    assert result.status is Status.COMPLETED


def test_evaluation_compilation_and_checkpoints_are_not_in_the_time_to_target(tmp_path, tiny_spec, monkeypatch):
    slept = {"evaluation": 0.0, "compile": 0.0, "checkpoint": 0.0}

    def slow(kind, function):
        def slowed(*arguments, **more):
            time.sleep(0.3)
            slept[kind] += 0.3
            return function(*arguments, **more)

        return slowed

    monkeypatch.setattr(loop, "evaluate_loss", slow("evaluation", perplexity.evaluate_loss))
    monkeypatch.setattr(run, "compiles", lambda *_: True)
    monkeypatch.setattr(run, "warm_up", slow("compile", run.warm_up))
    monkeypatch.setattr("podium.trainer.builtin.checkpoint.CheckpointWriter.save", slow(
        "checkpoint", run.Recorder.__init__.__globals__["CheckpointWriter"].save))  # fmt: skip
    changes = {**LONG, "checkpoint": {"every_steps": 10}, "stop": target(3.2, near_every_steps=4)}
    began = time.perf_counter()
    result = run_to(tmp_path / "a", tiny_spec(**changes))
    whole = time.perf_counter() - began
    assert result.reached_target
    assert all(seconds >= 0.3 for seconds in slept.values()), slept
    assert result.evaluation_seconds >= slept["evaluation"]
    assert result.compile_seconds >= slept["compile"]
    assert result.checkpoint_seconds >= slept["checkpoint"]
    # all clocks together fit into the whole, so what was slept is in none of the training time
    rounding = 1e-4
    assert result.time_to_target_seconds - rounding <= result.training_seconds <= whole - sum(slept.values())


def test_a_stopped_run_goes_on_to_a_tighter_target(tmp_path, tiny_spec):
    first = run_to(tmp_path / "first", tiny_spec(**LONG, stop=target(3.2)))
    checkpoint = f"{tmp_path}/first/{first.last_checkpoint}"
    spec = tiny_spec({"start_checkpoint": checkpoint, "continues": "x"}, **LONG, stop=target(2.9, also=[3.2]))
    second = run_to(tmp_path / "second", spec)
    assert second.status is Status.TARGET_REACHED
    assert second.steps > first.steps
    assert second.time_to_target_seconds > first.time_to_target_seconds
    # the crossing that the first run made is still its own
    assert second.targets[0].step == first.targets[0].step
    assert second.targets[0].seconds == first.time_to_target_seconds
    at_once = run_to(tmp_path / "whole", tiny_spec(**LONG, stop=target(2.9, also=[3.2])))
    assert [point.val_loss for point in points_of(tmp_path / "second")] == [
        point.val_loss for point in points_of(tmp_path / "whole")
    ]
    assert at_once.final_val_loss == second.final_val_loss


def test_the_command_line_takes_several_targets_and_the_lowest_stops(tmp_path, markov_data, tiny_config, run_trainer):
    (tmp_path / "run.json").write_text(tiny_config(**LONG).model_dump_json())
    done = run_trainer(
        "train", "--config", str(tmp_path / "run.json"), "--data", str(markov_data), "--run-name", "a",
        "--output-dir", str(tmp_path), "--target-loss", "3.5", "--target-loss", "3.2", "--val-freq", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "a")
    assert result["status"] == "target_reached"
    assert result["target_loss"] == 3.2
    assert [crossing["loss"] for crossing in result["targets"]] == [3.5, 3.2]
    assert points_of(tmp_path / "a")[0].step == 4
