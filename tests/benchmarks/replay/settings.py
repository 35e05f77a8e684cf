"""The ladder's settings, fixed on one half of the arms before the other half is looked at."""

from __future__ import annotations

import numpy as np

from .data import RecordedArm
from .ladder import Design, ladder, ladder_within
from .opponents import Opponent
from .reader import World, draw_from

CANDIDATES = tuple(
    Design(screen_seeds, most, proof_seeds)
    for screen_seeds in (1, 2)
    for most in (1, 2, 3, 5)
    for proof_seeds in (3, 5)
)
MATCHED = (
    *(Design(screen_seeds, most) for screen_seeds in (1, 2) for most in (1, 2, 3, 5)),
    *(Design(1, 1, short_steps=steps) for steps in (250, 500, 1000)),
)
"""Where the money is given, what is left of it says how many seeds the proof has, or whom a short screen promotes."""
MATCH = 0.05
"""How much more than its opponent the ladder may spend for its compute to be matched."""
GOOD_ENOUGH_NATS = 0.0001
"""A fifth of δ: regret above the full grid's that the ladder may have to be cheap."""


def fix(arms: list[RecordedArm], opponents: dict[str, Opponent], k: int, seed: int, draws: int) -> dict[str, Design]:
    """The design of the ladder itself (`ladder`), and one for each opponent's compute, by its name.

    The ladder itself is the cheapest candidate whose regret is within a fifth of δ of the full grid's; at a given
    compute it is the design with the least regret that keeps to it (+5 %), of equal ones the first.
    """
    rng = np.random.default_rng([seed, 1])
    draws_ = [draw_from(arms, k, rng) for _ in range(draws)]
    spent: dict[str, list[int]] = {}
    regrets: dict[str, list[float]] = {}
    for name, opponent in opponents.items():
        for number, draw in enumerate(draws_):
            world = World(draw)
            choice = opponent(world, np.random.default_rng([seed, 2, number]))
            spent.setdefault(name, []).append(world.account.tokens)
            regrets.setdefault(name, []).append(_regret(draw, choice.arm))
    grid = float(np.mean(regrets["full grid, 5 seeds"]))
    found: dict[str, Design] = {"ladder": _cheapest(draws_, grid)}
    for name in opponents:
        rows = []
        for design in MATCHED:
            worlds = [World(draw) for draw in draws_]
            regret = np.mean(
                [
                    _regret(draw, ladder_within(world, design, tokens, np.random.default_rng([seed, 3, number])).arm)
                    for number, (draw, world, tokens) in enumerate(zip(draws_, worlds, spent[name], strict=True))
                ]
            )
            if sum(world.account.tokens for world in worlds) <= (1 + MATCH) * sum(spent[name]):
                rows.append((float(regret), design))
        found[name] = min(rows, key=lambda row: row[0])[1]
    return found


def _cheapest(draws, grid: float) -> Design:
    rows = []
    for design in CANDIDATES:
        worlds = [World(draw) for draw in draws]
        regret = np.mean([_regret(draw, ladder(world, design).arm) for draw, world in zip(draws, worlds, strict=True)])
        rows.append((float(regret), sum(world.account.tokens for world in worlds), design))
    able = [row for row in rows if row[0] <= grid + GOOD_ENOUGH_NATS] or [min(rows, key=lambda row: row[0])]
    return min(able, key=lambda row: row[1])[2]


def _regret(draw, arm: int) -> float:
    return float(draw.truths[arm] - draw.truths.min())
