"""The scenarios: 20,000 draws each through the whole ladder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from tests.benchmarks.calibration.kill import noise_at_looks, rule_for
from tests.benchmarks.calibration.ladders import (
    ARMS,
    PROOF_SEEDS,
    SCREEN_SEEDS,
    DrawOf,
    Ladder,
    climb,
    with_reused_seeds,
)
from tests.benchmarks.calibration.noise import STEPS, Trials, normal, recorded, residual_curves
from tests.benchmarks.replay.data import RecordedArm

BROKEN_SHARE = 0.10
BATCH = 1_000


@dataclass(frozen=True)
class Scenario:
    """A ladder, its noise, and what goes wrong in it."""

    name: str
    ladder: Ladder
    limit: float = 0.015
    """What the rate must not be above."""
    least: float = 0.0
    noisy_arm: bool = False
    real_noise: bool = False
    broken: bool = False
    reuse: str = ""
    """`hidden`: selection seeds go into the proof and nobody notices; `guarded`: `decide` is told."""


@dataclass(frozen=True)
class Rate:
    """False proofs of a scenario."""

    scenario: Scenario
    draws: int
    false: int

    @property
    def rate(self) -> float:
        """Share of draws."""
        return self.false / self.draws

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Clopper-Pearson)."""
        low, high = stats.binomtest(self.false, self.draws).proportion_ci(0.95)
        return float(low), float(high)


def scenarios(arms: Sequence[RecordedArm] | None) -> list[Scenario]:
    """All of them; those on real residuals only where there are recorded arms."""
    target, baseline = Ladder("reaches_target"), Ladder("beats_baseline")
    found = [
        Scenario("target: normal, equal", target, 0.012, 0.008),
        Scenario("target: selection seeds reused unnoticed (the mistake)", target, 1.0, 0.03, reuse="hidden"),
        Scenario("target: selection seeds reused, as decide sees it", target, 0.0, reuse="guarded"),
        Scenario("target: one arm 2 × SD", target, noisy_arm=True),
        Scenario("target: 10 % broken trials", replace(target, broken=True), broken=True),
        Scenario("target: a pivot taken", replace(target, pivot=True)),
        Scenario("baseline: normal, equal", baseline, 0.012, 0.008),
        Scenario("baseline: best_mean, normal, equal", Ladder("best_mean"), 0.012, 0.008),
        Scenario("baseline: three finalists", replace(baseline, most=3)),
        Scenario("baseline: one arm 2 × SD", baseline, noisy_arm=True),
        Scenario("baseline: three finalists, one arm 2 × SD", replace(baseline, most=3), noisy_arm=True),
        Scenario("baseline: 10 % broken trials", replace(baseline, broken=True), broken=True),
        Scenario("baseline: a pivot taken", replace(baseline, pivot=True)),
    ]
    if arms is not None:
        kill = rule_for(SCREEN_SEEDS, STEPS, noise_at_looks(arms))
        found += [
            Scenario("target: residuals of real curves", target, real_noise=True),
            Scenario("baseline: residuals of real curves", baseline, real_noise=True),
            Scenario("baseline: real curves, kill rule on", replace(baseline, kill=kill), real_noise=True),
            Scenario(
                "baseline: real curves, kill rule, 10 % broken, pivot",
                replace(baseline, kill=kill, broken=True, pivot=True),
                real_noise=True,
                broken=True,
            ),
        ]
    # last, since a scenario's draws are seeded by its number
    return [*found, Scenario("baseline: three finalists, best_mean", Ladder("best_mean", most=3), 0.012, 0.008)]


def simulate(
    scenario: Scenario,
    draws: int,
    rng: np.random.Generator,
    arms: Sequence[RecordedArm] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Rate:
    """The rate of false proofs over so many draws."""
    residuals = residual_curves(arms) if scenario.real_noise and arms is not None else None
    false = done = 0
    while done < draws:
        count = min(BATCH, draws - done)
        false += sum(_proves(scenario, draw) for draw in _draws(scenario, count, rng, residuals))
        done += count
        tell(f"{scenario.name}: {done} of {draws}")
    return Rate(scenario, draws, false)


def _proves(scenario: Scenario, draw: DrawOf) -> bool:
    if scenario.reuse:
        return with_reused_seeds(scenario.ladder, draw, hidden=scenario.reuse == "hidden").proven
    return climb(scenario.ladder, draw).proven


def _draws(scenario: Scenario, count: int, rng: np.random.Generator, residuals: np.ndarray | None):
    spreads = np.ones((count, ARMS))
    if scenario.noisy_arm:
        spreads[np.arange(count), rng.integers(ARMS, size=count)] = 2.0
    stages = {}
    broken = {}
    for stage, seeds in (("screen", SCREEN_SEEDS), ("proof", PROOF_SEEDS)):
        shape = (count, ARMS, seeds)
        stages[stage] = normal(rng, shape, spreads) if residuals is None else recorded(rng, shape, residuals)
        if scenario.broken:
            broken[stage] = rng.random(shape) < BROKEN_SHARE
    for number in range(count):
        one = {
            stage: Trials(trials.finals[number], None if trials.looks is None else trials.looks[number])
            for stage, trials in stages.items()
        }
        yield DrawOf(one["screen"], one["proof"], {stage: masks[number] for stage, masks in broken.items()})
