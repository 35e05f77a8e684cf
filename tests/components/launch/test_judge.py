"""The kill rule after the fact: the same arms are killed, with the same figures, in whatever order trials end."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podium.components.launch.conductor import StageOutcome
from podium.components.launch.judge import Judge, Judgement, arm_kill, as_killed
from podium.components.study.layout import TrialKey
from podium.components.study.run import Run
from podium.trainer.trial.result import Point, Status, TrialResult
from podium.trainer.trial.stopping import Ending, KillCriterion, KillRule, StopRules, first_stop

RULE = KillRule(criteria=[KillCriterion(metric="loss", threshold=0.3)], span_tokens=2000, min_tokens=3000)
LOOKS = 8


def curve(
    *, offset: float = 0.0, worse_from: int | None = None, end: int = LOOKS, bad_from: int | None = None
) -> list[Point]:
    """Falls to 2; `worse_from` a look on it is 0.5 nats higher, `bad_from` a look on it is not finite."""
    losses = [2 + 2 / look + offset + (0.5 if worse_from and look >= worse_from else 0.0) for look in range(1, end + 1)]
    return [
        Point(look, look * 1000, None if bad_from and look >= bad_from else loss) for look, loss in enumerate(losses, 1)
    ]


CURVES: dict[str, Callable[[int], list[Point]]] = {
    "base": lambda seed: curve(offset=seed / 1000),
    "same": lambda seed: curve(offset=seed / 900),
    "bad": lambda seed: curve(offset=0.5),
    "late": lambda seed: curve(worse_from=5),
    "too-late": lambda seed: curve(worse_from=7),
    "one-bad-seed": lambda seed: curve(offset=0.8 if seed == 0 else 0.0),
    "short": lambda seed: curve(offset=0.5, end=2),
    "diverged": lambda seed: curve(worse_from=2, bad_from=4),
    "never-ran": lambda seed: [],
}
SCENARIOS = ("baseline there", "baseline missing", "baseline diverged", "baseline lacks a seed")


def curves_of(scenario: str, seeds: int) -> dict[TrialKey, list[Point]]:
    known = {TrialKey("s", arm, seed): make(seed) for arm, make in CURVES.items() for seed in range(seeds)}
    for seed in range(seeds):
        if scenario == "baseline missing":
            known[TrialKey("s", "base", seed)] = []
        if scenario == "baseline diverged":
            known[TrialKey("s", "base", seed)] = curve(bad_from=4)
    if scenario == "baseline lacks a seed":
        known[TrialKey("s", "base", 0)] = []
    return known


def arrive(curves: dict[TrialKey, list[Point]], seeds: int, order: random.Random) -> dict[TrialKey, Ending | None]:
    """Let the trials run in a random order, each in pieces (it is resumed now and then), four at a time.

    The conductor looks after each piece, and ends the arms that the judge tells it to.
    """
    reached = dict.fromkeys(curves, 0)
    judge = Judge(RULE, "s", "base", range(seeds), lambda key: curves[key][: reached[key]])
    waiting = list(curves)
    order.shuffle(waiting)
    live: list[TrialKey] = []
    rulings: list[Judgement] = []
    while live or waiting:
        while waiting and len(live) < 4:
            live.append(waiting.pop())
        key = order.choice(live)
        if order.random() < 0.1:
            reached[key] = max(0, reached[key] - 2)  # it crashed: its curve goes back to its checkpoint
        reached[key] = min(len(curves[key]), reached[key] + order.randint(1, 4))
        judge.look([each.variant for each in live])
        done = [each for each in live if reached[each] == len(curves[each]) or judge.kill_of(each)]
        for each in done:
            live.remove(each)
            rulings += judge.over(each)
        for each in [each for each in waiting if judge.kill_of(each)]:
            waiting.remove(each)
            rulings += judge.over(each)
    rulings += judge.close()
    assert len(rulings) == len({ruling.key for ruling in rulings}) == len(curves), "one ruling for each trial"
    return {ruling.key: ruling.kill for ruling in rulings}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_same_set_is_killed_in_100_random_orders_of_arrival(scenario: str, seeds: int) -> None:
    curves = curves_of(scenario, seeds)
    outcomes = [arrive(curves, seeds, random.Random(n)) for n in range(100)]
    assert all(outcome == outcomes[0] for outcome in outcomes)
    killed = {key.variant: kill.tokens for key, kill in outcomes[0].items() if kill}
    assert "base" not in killed
    if scenario == "baseline there":
        # "late" is worse from look 5 and has a span of 2,000 tokens behind it at look 7
        assert killed == {"bad": 3000, "late": 7000} | ({"one-bad-seed": 3000} if seeds == 1 else {})
    elif scenario == "baseline diverged":
        assert killed == {"bad": 3000} | ({"one-bad-seed": 3000} if seeds == 1 else {})
    else:
        assert killed == {}


def test_every_seed_of_an_arm_gets_the_arms_ruling() -> None:
    outcome = arrive(curves_of("baseline there", 3), 3, random.Random(0))
    bad = [kill for key, kill in outcome.items() if key.variant == "bad"]
    assert len(bad) == 3
    assert len(set(bad)) == 1


def test_an_arm_with_one_seed_is_judged_as_the_trainer_judges_it() -> None:
    for name, make in CURVES.items():
        if name == "diverged":
            continue  # there the trainer stops for the loss that is not finite
        kill = arm_kill({0: make(0)}, {0: CURVES["base"](0)}, [0], RULE)
        stop = first_stop(make(0), CURVES["base"](0), StopRules(kill=RULE))
        assert (kill.tokens, kill.reason) == (stop.tokens, stop.reason) if kill and stop else kill is stop, name


def test_without_a_rule_every_trial_is_let_through_at_once() -> None:
    judge = Judge(None, "s", "base", [0], lambda key: pytest.fail("no curve is read"))
    assert judge.over(TrialKey("s", "bad", 0)) == [Judgement(TrialKey("s", "bad", 0), None)]
    assert judge.close() == []


def test_a_repeat_with_another_seed_is_not_part_of_the_arm() -> None:
    judge = Judge(RULE, "s", "base", [0], lambda key: CURVES[key.variant](key.seed))
    judge.over(TrialKey("s", "base", 0))
    assert judge.over(TrialKey("s", "bad", 99)) == [Judgement(TrialKey("s", "bad", 99), None)]


def test_a_killed_result_has_the_figures_up_to_the_look_and_says_how_far_it_came() -> None:
    points = curve(worse_from=4)
    kill = Ending.killed(6000, "worse")
    lines = [{"step": p.step, "tokens": p.tokens, "train_loss": 10.0 - p.step} for p in points]
    lines += [{"step": p.step, "tokens": p.tokens, "val_loss": p.val_loss} for p in points]
    finished = TrialResult(
        run_name="seed-0",
        status=Status.COMPLETED,
        reason="all steps done",
        seed=0,
        steps=8,
        tokens=8000,
        passes=2.0,
        final_val_loss=points[-1].val_loss,
        best_val_loss=2.0,
        best_model="best",
        final_model="final",
    )
    killed = as_killed(finished, lines, kill)
    assert killed.final_val_loss == points[5].val_loss
    assert killed.final_val_perplexity == math.exp(points[5].val_loss or 0)
    assert (killed.status, killed.reason, killed.kill_tokens) == (Status.KILLED, "worse", 6000)
    best = min(points[:6], key=lambda point: point.val_loss or 0)
    assert (killed.best_step, killed.best_val_loss) == (best.step, best.val_loss) == (3, points[2].val_loss)
    assert (killed.best_model, killed.last_checkpoint) == (None, None), "they may be of after the look"
    assert (killed.steps, killed.tokens, killed.stopped_tokens) == (6, 6000, 8000), "how far it really came"
    assert (killed.passes, killed.final_train_loss) == (1.5, 4.0)
    assert as_killed(killed, lines, kill) == killed
    on_time = finished.model_copy(update={"steps": 6, "tokens": 6000, "passes": 1.5, "stopped_tokens": 6000})
    early = as_killed(on_time, [line for line in lines if line["tokens"] <= 6000], kill)
    assert early == killed.model_copy(update={"stopped_tokens": 6000})


KILL_STOP = "{kill: {criteria: [{metric: loss, threshold: 0.3}], span_tokens: 1000, min_tokens: 1000}}"


def losses(offset: float) -> dict[str, Any]:
    return {"losses": [offset + loss for loss in (3.0, 2.5, 2.2, 2.0)]}


def test_trials_that_finished_before_the_baseline_are_judged_when_it_ends(
    make_run: Callable[..., Run], conducted: Callable[..., StageOutcome], entries: Callable[..., dict[str, Any]]
) -> None:
    script = {"base": {**losses(0), "seconds": 1.0}, "a": losses(0.5), "b": losses(0.1), "c": losses(0.5)}
    run = make_run(script, stop=KILL_STOP)
    conducted(run)
    statuses = {name: run.result(TrialKey("first", name, 42)) for name in ("base", "a", "b", "c")}
    assert {name: result.status for name, result in statuses.items() if result} == {
        "base": Status.COMPLETED,
        "a": Status.KILLED,
        "b": Status.COMPLETED,
        "c": Status.KILLED,
    }
    killed = statuses["a"]
    assert killed is not None
    assert (killed.kill_tokens, killed.stopped_tokens, killed.final_val_loss) == (2000, 4000, 3.0)
    assert entries(run, "kill").keys() == {"first/a/seed-42", "first/c/seed-42"}
    assert entries(run, "trial_ended")["first/a/seed-42"]["status"] == "killed"
    assert len(entries(run, "trial_ended")) == 4


def test_an_arm_with_several_seeds_is_ended_by_its_mean_while_it_runs(
    make_run: Callable[..., Run], conducted: Callable[..., StageOutcome], entries: Callable[..., dict[str, Any]]
) -> None:
    slow = {**losses(0.5), "seconds": 60}
    script = {"base": losses(0), "a": slow, "b/42": losses(0.5), "b/43": losses(-0.5)}
    run = make_run(script, stop=KILL_STOP, seeds=2, names=["a", "b"], price="{usd_per_gpu_hour: 3600}")
    conducted(run, slots=2)
    for seed in (42, 43):
        killed = run.result(TrialKey("first", "a", seed))
        assert killed is not None
        assert (killed.status, killed.kill_tokens, killed.final_val_loss) == (Status.KILLED, 2000, 3.0)
        assert killed.parameters is not None
        assert killed.cost_usd is not None
        assert 0 < killed.cost_usd < 60
        unharmed = run.result(TrialKey("first", "b", seed))
        assert unharmed is not None
        assert unharmed.status is Status.COMPLETED, "one seed of b is worse, its mean is not"
    assert entries(run, "kill").keys() == {"first/a/seed-42", "first/a/seed-43"}


def test_a_judgement_that_a_crash_cut_off_is_made_up_for(
    make_run: Callable[..., Run],
    conducted: Callable[..., StageOutcome],
    entries: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    run = make_run({"base": losses(0), "a": losses(0.5)}, stop=KILL_STOP, names=["a"])
    conducted(run)
    name = "trials/first/a/seed-42/result.json"
    whole = {key: run.storage.read_bytes(key) for key in run.storage.list() if not key.startswith("ledger")}
    # as if the conductor had died after it priced the result, before it judged it
    finished = json.loads(run.storage.read_text(name)) | {
        "status": "completed",
        "reason": "all steps done",
        "steps": 4,
        "tokens": 4000,
        "final_val_loss": 2.5,
        "final_val_perplexity": None,
        "final_bits_per_byte": None,
        "kill_tokens": None,
        "stopped_tokens": None,
        "kill_detail": None,
        "best_model": "checkpoints/best-model.safetensors",
    }
    run.storage.write_json(name, finished)
    run.storage.delete_folder("ledger")
    conducted(run)
    assert {key: run.storage.read_bytes(key) for key in run.storage.list() if not key.startswith("ledger")} == whole
    assert entries(run, "kill").keys() == {"first/a/seed-42"}
