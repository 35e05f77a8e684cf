"""The kill rule on recorded curves: how often it ends an arm that is the baseline again, and one that is 3σ worse.

A null arm and its baseline are different recorded runs of one arm, so they truly have one curve; a worse arm is such a
null arm with 3σ added at every evaluation. The rule looks at 60, 70, 80 and 90 % of the schedule and ends an arm that
is worse by a band at each look over a fifth of it; the band is in units of the noise of a difference of two means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tests.benchmarks.calibration.noise import LOOKS, SIGMA, at, residual_curves
from tests.benchmarks.replay.data import TOKENS_PER_STEP, RecordedArm, Run

from podium.components.launch.judge import arm_kill
from podium.trainer.trial.result import Point
from podium.trainer.trial.stopping import KillCriterion, KillRule

SPAN = 0.2
"""Share of the schedule over which every look has to be worse."""
BAND = 2.0
"""In SDs of the difference between two arms' means: the least, in steps of 0.1, with at most 1 % false kills on half of
the arms."""


@dataclass(frozen=True)
class KillRates:
    """What the rule did with so many seeds an arm."""

    seeds: int
    arms: int
    recorded: int
    """Recorded arms that had enough runs."""
    false_kills: int
    hits: int
    """Kills among the same arms, made 3σ worse."""


def rule_for(seeds: int, total_steps: int, sigma: float = SIGMA) -> KillRule:
    """The rule for arms of so many seeds: a band that follows the noise of the difference, by the seeds."""
    tokens = [round(share * total_steps) * TOKENS_PER_STEP for share in LOOKS]
    return KillRule(
        criteria=[KillCriterion(metric="loss", sigmas=BAND * float(np.sqrt(2 / seeds)), sigma=sigma)],
        span_tokens=round(SPAN * total_steps) * TOKENS_PER_STEP,
        min_tokens=tokens[0],
        looks=tokens,
    )


def noise_at_looks(arms: Sequence[RecordedArm]) -> float:
    """SD over seeds at the noisiest look, nats: the rule's sigma, since a run is noisier before its end."""
    return float(residual_curves(arms, LOOKS).std(axis=0).max())


def kill_rates(
    arms: Sequence[RecordedArm], seeds: int, draws: int, sigma: float, rng: np.random.Generator, worse: float = 3.0
) -> KillRates:
    """Rates over `draws` null arms. An arm takes part if it has runs enough for both sides, all of them different."""
    able = [arm for arm in arms if len(arm.runs) >= 2 * seeds]
    false_kills = hits = 0
    names = list(range(seeds))
    for _ in range(draws):
        arm = able[rng.integers(len(able))]
        rule = rule_for(seeds, arm.total_steps, sigma)
        chosen = rng.permutation(len(arm.runs))[: 2 * seeds]
        sides = [[_curve(arm, arm.runs[index]) for index in half] for half in (chosen[:seeds], chosen[seeds:])]
        null, reference = (dict(zip(names, side, strict=True)) for side in sides)
        shifted = {seed: _shifted(curve, worse * SIGMA) for seed, curve in null.items()}
        false_kills += arm_kill(null, reference, names, rule) is not None
        hits += arm_kill(shifted, reference, names, rule) is not None
    return KillRates(seeds, draws, len(able), false_kills, hits)


def _curve(arm: RecordedArm, run: Run) -> list[Point]:
    """The evaluations that the looks would find: the last one by each look, at the look's token count."""
    steps = [round(share * arm.total_steps) for share in (*LOOKS, 1.0)]
    return [Point(step=step, tokens=step * TOKENS_PER_STEP, val_loss=at(run, step)) for step in steps]


def _shifted(curve: Sequence[Point], nats: float) -> list[Point]:
    return [
        Point(step=point.step, tokens=point.tokens, val_loss=point.val_loss + nats)
        for point in curve
        if point.val_loss is not None
    ]
