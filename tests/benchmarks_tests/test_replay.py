from __future__ import annotations

import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from tests.benchmarks.replay.data import RecordedArm, Run, halves, load, without_difference
from tests.benchmarks.replay.evaluate import evaluate
from tests.benchmarks.replay.intervals import paired
from tests.benchmarks.replay.ladder import Design, ladder, ladder_within
from tests.benchmarks.replay.opponents import OWN
from tests.benchmarks.replay.reader import Account, PeekError, Trial, World, draw_from
from tests.benchmarks.replay.report import beaten_by, table
from tests.benchmarks.replay.schedulers import schedulers

STEPS = 900
TOKENS = 524_288


def arm(name: str, loss: float, *, total: int = STEPS, runs: int = 6, noise: float = 0.001) -> RecordedArm:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    steps = np.arange(100, total + 1, 100)
    finals = loss + noise * rng.standard_normal(runs)
    return RecordedArm(name, total, tuple(Run(steps, final + (total - steps) / total) for final in finals))


@pytest.fixture(scope="module")
def arms() -> list[RecordedArm]:
    return [arm(str(index), 3.28 - 0.004 * index) for index in range(8)]


@pytest.fixture
def world(arms):
    return World(draw_from(arms, 6, np.random.default_rng(0)))


def test_reader_refuses_a_value_past_the_look():
    trial = Trial(arm("a", 3.0).runs[0], STEPS, Account()).train_to(1 / 3)
    assert trial.value(1 / 3) == pytest.approx(trial.curve()[-1].val_loss)
    assert [point.step for point in trial.curve()] == [100, 200, 300]
    with pytest.raises(PeekError, match="step 900 is past the current look at step 300"):
        trial.value()


def test_reader_refuses_a_look_before_the_first_evaluation():
    with pytest.raises(PeekError, match="nothing was evaluated"):
        Trial(arm("a", 3.0).runs[0], STEPS, Account()).train_to(0.01).value(0.01)


def test_training_on_is_charged_once(world):
    world.trial(0, 0).train_to(1 / 3)
    world.trial(0, 0).train_to(1 / 3)
    assert world.account.tokens == 300 * TOKENS
    world.final(0, 0)
    world.final(1, 0)
    assert world.account.tokens == 2 * STEPS * TOKENS
    assert world.account.usd == pytest.approx(world.account.tokens / 1e6)


def test_costs_of_the_policies_add_up(arms):
    draw = draw_from(arms, 6, np.random.default_rng(1))
    spent = {}
    for name, policy in OWN.items():
        own = World(draw)
        policy(own, np.random.default_rng(0))
        spent[name] = own.account.tokens / (STEPS * TOKENS)
    assert spent["full grid, 5 seeds"] == 30 == draw.grid_tokens / (STEPS * TOKENS)
    assert spent["one full seed each"] == 6
    assert spent["random"] == 1
    assert spent["naive top-1"] == pytest.approx(6 * 0.2 + 0.8)
    assert spent["constant discard"] == pytest.approx(6 * 500 / 900 + 3 * 400 / 900)
    assert spent["successive halving"] == pytest.approx(6 / 9 + 2 * 2 / 9 + 2 / 3, abs=0.01)
    assert 18 <= spent["F-race"] <= 30


def test_arms_of_unequal_length_cost_their_own(arms):
    draw = draw_from([arm("short", 3.0), arm("long", 3.1, total=1800)], 2, np.random.default_rng(0))
    assert draw.grid_tokens == 5 * (900 + 1800) * TOKENS


def test_clear_winner_is_found_and_proven_by_the_ladder(arms):
    draw = draw_from(arms, 8, np.random.default_rng(3))
    choice = ladder(World(draw), Design(1, 2, 5))
    assert draw.arms[choice.arm].name == "7"
    assert choice.claim == ("not proven" if choice.arm == 0 else "proven")


def test_ladder_trains_selection_and_proof_on_different_seeds(world):
    ladder(world, Design(2, 1, 3))
    seeds = {seed for _, seed in world._trials}
    assert seeds == {0, 1, 16, 17, 18}


def test_ladder_spends_what_it_is_given(arms):
    rng = np.random.default_rng(0)
    given = 4.4 * STEPS * TOKENS
    spent = []
    for _ in range(60):
        own = World(draw_from(arms, 8, rng))
        ladder_within(own, Design(1, 2), int(given), rng)
        spent.append(own.account.tokens)
    assert set(spent) == {4 * STEPS * TOKENS, 5 * STEPS * TOKENS}
    assert np.mean(spent) == pytest.approx(given, rel=0.05)


def test_short_screen_spends_what_it_is_given_and_trains_leaders_afresh(arms):
    rng = np.random.default_rng(0)
    given = (8 * 300 / STEPS + 2.5) * STEPS * TOKENS
    spent = []
    for _ in range(60):
        own = World(draw_from(arms, 8, rng))
        ladder_within(own, Design(1, 1, short_steps=300), int(given), rng)
        spent.append(own.account.tokens)
        assert {seed for (_, seed), trial in own._trials.items() if trial.look == STEPS} == {16}
    assert np.mean(spent) == pytest.approx(given, rel=0.05)


def test_truth_is_the_mean_of_all_seeds_and_halves_share_no_arm(arms):
    assert arms[0].truth == pytest.approx(np.mean([run.losses[-1] for run in arms[0].runs]))
    first, second = halves(arms)
    assert len(first) == len(second) == 4
    assert not {one.name for one in first} & {one.name for one in second}


def test_arms_without_difference_keep_the_noise(arms):
    null = without_difference(arms)
    assert len(null.runs) == 48
    assert null.finals.std() == pytest.approx(0.001, rel=0.3)


def test_any_file_of_the_same_columns_is_read_and_cut_logs_are_left_out(tmp_path):
    rows = [
        {"variant": "v", "total_steps": 900, "run": run, "step": step, "val_loss": 4.0 - step / 1000}
        for run in range(7)
        for step in range(100, 1000 if run else 600, 100)
    ]
    path = tmp_path / "curves.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    (only,) = load(path)
    assert (only.name, only.total_steps, len(only.runs)) == ("v@900", 900, 6)
    pd.DataFrame(rows).drop(columns="run").to_csv(path, index=False)
    with pytest.raises(SystemExit, match="lacks the columns run"):
        load(path)


def test_paired_interval_of_a_constant_difference_has_no_width():
    values = np.random.default_rng(0).standard_normal(50)
    assert paired(values - 0.5, values) == pytest.approx((-0.5, -0.5, -0.5))


def test_a_replay_of_two_draws_gives_a_row_to_each_policy(arms):
    opponents = {name: OWN[name] for name in ("full grid, 5 seeds", "random")}
    designs = {"ladder": Design(1, 1, 3), "full grid, 5 seeds": Design(1, 2), "random": Design(1, 1)}
    out = evaluate(arms, opponents, designs, k=5, seed=0, draws=2, tell=lambda text: None)
    text = table(out)
    assert all(f"| {name} |" in text for name in ("Podium's ladder", *opponents))
    assert out.policies["full grid, 5 seeds"].share == [1.0, 1.0]
    assert "full grid, 5 seeds" not in beaten_by(out)


def test_without_optuna_its_opponents_are_refused_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r"need Optuna .*--no-optuna"):
        schedulers()


def test_optunas_schedulers_train_some_arms_to_the_end_and_prune_the_rest(arms):
    pytest.importorskip("optuna", reason="the benchmarks' extra is not installed")
    draw = draw_from(arms, 8, np.random.default_rng(2))
    for name, policy in schedulers().items():
        own = World(draw)
        choice = policy(own, np.random.default_rng(0))
        looks = {trial.look for trial in own._trials.values()}
        assert looks <= {100, 300, 900}, name
        assert {100, 900} <= looks, name
        assert own.trial(choice.arm, 0).look == STEPS
