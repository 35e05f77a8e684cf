from __future__ import annotations

import numpy as np
import pytest
from tests.benchmarks.calibration.kill import kill_rates, rule_for
from tests.benchmarks.calibration.ladders import (
    ARMS,
    PROOF_SEEDS,
    SCREEN_SEEDS,
    DrawOf,
    Ladder,
    climb,
    with_reused_seeds,
)
from tests.benchmarks.calibration.noise import LOOKS, LOSS, SIGMA, STEPS, Trials, normal, residual_curves
from tests.benchmarks.calibration.simulate import Rate, Scenario, scenarios, simulate
from tests.benchmarks.replay.data import RecordedArm, Run

from podium.trainer.trial.result import Status

SPREAD = np.linspace(-1, 1, PROOF_SEEDS) * SIGMA


def draw_of(screen: np.ndarray, proof: np.ndarray, looks: dict[str, np.ndarray] | None = None) -> DrawOf:
    looks = looks or {}
    return DrawOf(Trials(LOSS + screen, looks.get("screen")), Trials(LOSS + proof, looks.get("proof")), {})


@pytest.fixture
def flat():
    return np.zeros((ARMS, SCREEN_SEEDS)), np.tile(SPREAD, (ARMS, 1))


@pytest.fixture(scope="module")
def recorded() -> list[RecordedArm]:
    rng = np.random.default_rng(0)
    steps = np.arange(100, STEPS + 1, 100)
    return [
        RecordedArm(
            str(number),
            STEPS,
            tuple(Run(steps, LOSS + rng.normal(0, SIGMA) + (STEPS - steps) / STEPS) for _ in range(12)),
        )
        for number in range(3)
    ]


@pytest.mark.parametrize("proof", ["reaches_target", "beats_baseline", "best_mean"])
def test_arm_that_is_far_better_in_both_stages_is_proven(flat, proof):
    screen, finals = flat
    screen[3] -= 0.02
    finals[3] -= 0.02
    verdict = climb(Ladder(proof), draw_of(screen, finals))
    assert (verdict.winner, verdict.proven) == ("arm-03", True)


@pytest.mark.parametrize("proof", ["reaches_target", "beats_baseline", "best_mean"])
def test_arm_that_was_only_lucky_in_the_screen_is_not_proven(flat, proof):
    screen, finals = flat
    screen[3] -= 0.02
    assert not climb(Ladder(proof), draw_of(screen, finals)).proven


@pytest.mark.parametrize(("hidden", "proven"), [(True, True), (False, False)])
def test_reused_selection_seeds_prove_only_where_decide_is_not_told(flat, hidden, proven):
    screen, finals = flat
    screen[3] -= 0.01
    finals[3] -= 0.01
    verdict = with_reused_seeds(Ladder("reaches_target"), draw_of(screen, finals), hidden=hidden)
    assert verdict.proven is proven


def test_pivot_tries_the_next_best(flat):
    screen, finals = flat
    screen[3] -= 0.02
    screen[5] -= 0.01
    finals[5] -= 0.02
    assert not climb(Ladder("beats_baseline"), draw_of(screen, finals)).proven
    verdict = climb(Ladder("beats_baseline", pivot=True), draw_of(screen, finals))
    assert (verdict.winner, verdict.proven) == ("arm-05", True)


def test_killed_arm_is_not_promoted(flat):
    screen, finals = flat
    screen[3] -= 0.02
    looks = {"screen": np.full((ARMS, SCREEN_SEEDS, len(LOOKS)), LOSS)}
    looks["screen"][3] += 0.02
    looks["proof"] = np.full((ARMS, PROOF_SEEDS, len(LOOKS)), LOSS)
    verdict = climb(Ladder("beats_baseline", kill=rule_for(SCREEN_SEEDS, STEPS)), draw_of(screen, finals, looks))
    (before,) = verdict.results.previous
    assert before.not_chosen["arm-03"] == "seed 1000 killed, seed 1001 killed"
    assert before.counts[Status.KILLED] == SCREEN_SEEDS


def test_broken_trials_shrink_n_but_stop_nothing(flat):
    screen, finals = flat
    screen[3] -= 0.02
    finals[3] -= 0.02
    broken = {"screen": np.zeros((ARMS, SCREEN_SEEDS), bool), "proof": np.zeros((ARMS, PROOF_SEEDS), bool)}
    broken["proof"][3, :2] = True
    draw = DrawOf(Trials(LOSS + screen), Trials(LOSS + finals), broken)
    verdict = climb(Ladder("beats_baseline", broken=True), draw)
    assert verdict.proven
    assert verdict.counts == {"broken": 2, "completed": 8}


def test_every_scenario_runs(recorded):
    for number, scenario in enumerate(scenarios(recorded)):
        rate = simulate(scenario, 4, np.random.default_rng(number), recorded)
        assert rate.draws == 4
        assert 0 <= rate.false <= 4
    assert sum(scenario.real_noise for scenario in scenarios(recorded)) == 4
    assert not any(scenario.real_noise for scenario in scenarios(None))


def test_false_proofs_are_counted_with_an_interval():
    rate = Rate(Scenario("one", Ladder("best_mean")), 1000, 10)
    assert rate.rate == 0.01
    low, high = rate.interval
    assert 0.004 < low < 0.01 < high < 0.02


def test_noise_has_the_declared_sd_and_one_arm_twice_of_it():
    spreads = np.ones((4000, 3))
    spreads[:, 1] = 2
    finals = normal(np.random.default_rng(0), (4000, 3, 2), spreads).finals
    assert finals[:, 0].std() == pytest.approx(SIGMA, rel=0.05)
    assert finals[:, 1].std() == pytest.approx(2 * SIGMA, rel=0.05)


def test_residual_curves_are_centred_and_keep_the_spread(recorded):
    residuals = residual_curves(recorded)
    assert residuals.shape == (36, len(LOOKS) + 1)
    assert residuals[:12].mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert residuals.std() == pytest.approx(SIGMA, rel=0.3)


def test_kill_rule_spares_null_arms_and_ends_worse_ones(recorded):
    rates = kill_rates(recorded, 5, 60, SIGMA, np.random.default_rng(0), worse=6.0)
    assert rates.recorded == 3
    assert rates.false_kills <= 6
    assert rates.hits == 60
    assert kill_rates(recorded[:1], 7, 0, SIGMA, np.random.default_rng(0)).recorded == 0
