"""What people use today, as far as no well-kept implementation can be driven: see `schedulers` for Optuna's.

Each takes a world and returns what it chose. The baseline is arm 0. A policy that tests nothing claims nothing;
the grid and the race test their winner as is usual, on the seeds that chose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from podium.components.verdicts.stats import better_than_control

from .reader import GRID_SEEDS, World

ALPHA = 0.01
ETA = 3
RUNGS = (1 / 9, 1 / 3, 1.0)
"""Shares of the schedule for η = 3; below a ninth there is hardly an evaluation."""


@dataclass(frozen=True)
class Choice:
    """What a policy ended with."""

    arm: int
    claim: Literal["none", "not proven", "proven"] = "none"
    """Whether it says that its arm beats the baseline."""


Opponent = Callable[[World, np.random.Generator], Choice]


def full_grid(world: World, rng: np.random.Generator) -> Choice:
    """Five whole seeds of every arm, the best mean, and a t test of it against the baseline on the same seeds."""
    del rng
    values = np.array([[world.final(arm, seed) for seed in range(GRID_SEEDS)] for arm in range(world.arms)])
    return _tested(values, int(values.mean(axis=1).argmin()))


def one_full_seed(world: World, rng: np.random.Generator) -> Choice:
    """One whole seed of every arm, and the best value."""
    del rng
    return Choice(min(range(world.arms), key=lambda arm: world.final(arm, 0)))


def random_arm(world: World, rng: np.random.Generator) -> Choice:
    """Any arm, trained once."""
    arm = int(rng.integers(world.arms))
    world.final(arm, 0)
    return Choice(arm)


def naive_top_1(world: World, rng: np.random.Generator) -> Choice:
    """A fifth of the schedule for every arm, and the leader is trained on."""
    del rng
    leader = _best_at(world, range(world.arms), 0.2)[0]
    world.final(leader, 0)
    return Choice(leader)


def constant_discard(world: World, rng: np.random.Generator, *, steps: int = 500, keep: int = 3) -> Choice:
    """The same number of steps for every arm, then the best three to their ends (Egele et al., arXiv 2404.04111)."""
    del rng
    values = [(world.after_steps(arm, 0, steps), arm) for arm in range(world.arms)]
    kept = [arm for _, arm in sorted(values)[:keep]]
    return Choice(min(kept, key=lambda arm: world.final(arm, 0)))


def successive_halving(world: World, rng: np.random.Generator) -> Choice:
    """Synchronous, η = 3: a third of the arms goes on at each rung (Jamieson & Talwalkar 2016).

    Own, since Optuna's pruner of that name is the asynchronous one.
    """
    del rng
    arms = list(range(world.arms))
    for rung in RUNGS[:-1]:
        arms = _best_at(world, arms, rung)[: max(1, len(arms) // ETA)]
    return Choice(_best_at(world, arms, RUNGS[-1])[0])


def f_race(world: World, rng: np.random.Generator, *, first_test: int = 3, level: float = 0.05) -> Choice:
    """Birattari et al. 2002: seeds are blocks, Friedman's test after each from the third on drops arms; five at most.

    irace, the kept implementation, is R and runs its own targets. Arms are dropped by the post-hoc test on rank sums
    (Conover 1999) against the best.
    """
    del rng
    alive = np.arange(world.arms)
    columns: list[np.ndarray] = []
    for block in range(GRID_SEEDS):
        columns.append(np.full(world.arms, np.nan))
        for arm in alive:
            columns[-1][arm] = world.final(int(arm), block)
        if block + 1 >= first_test and len(alive) > 1:
            alive = alive[_survivors(np.array([column[alive] for column in columns]), level)]
        if len(alive) == 1:
            break
    values = np.array(columns).T
    best = int(alive[values[alive].mean(axis=1).argmin()])
    return _tested(values, best)


def _survivors(blocks: np.ndarray, level: float) -> np.ndarray:
    """(blocks, arms) values → which arms the test does not separate from the best."""
    n, k = blocks.shape
    ranks = stats.rankdata(blocks, axis=1)
    sums = ranks.sum(axis=0)
    if k == 2:  # Friedman's needs three; Wilcoxon's test is what irace falls back on
        p = stats.wilcoxon(blocks[:, 0], blocks[:, 1]).pvalue
        return np.ones(2, bool) if p >= level else sums == sums.min()
    statistic, p = stats.friedmanchisquare(*blocks.T)
    if not p < level:
        return np.ones(k, bool)
    squares = (ranks**2).sum()
    spread = 2 * n * (1 - statistic / (n * (k - 1))) * (squares - n * k * (k + 1) ** 2 / 4) / ((n - 1) * (k - 1))
    critical = stats.t.ppf(1 - level / 2, (n - 1) * (k - 1)) * math.sqrt(max(0.0, spread))
    return sums - sums.min() <= critical


def _best_at(world: World, arms: list[int] | range, share: float) -> list[int]:
    return [arm for _, arm in sorted((world.trial(arm, 0).train_to(share).value(share), arm) for arm in arms)]


def _tested(values: np.ndarray, best: int) -> Choice:
    """One-sided t test of the winner against the baseline on the seeds that both have, variance of the two pooled."""
    seeds = ~np.isnan(values[0]) & ~np.isnan(values[best])
    own, control = values[best, seeds], values[0, seeds]
    n = len(own)
    if best == 0 or n < 2:
        return Choice(best, "not proven")
    sd = math.sqrt((own.var(ddof=1) + control.var(ddof=1)) / 2)
    p = better_than_control((control.mean() - own.mean()) / (sd * math.sqrt(2 / n)), [n], n, 2 * n - 2)
    return Choice(best, "proven" if p < ALPHA else "not proven")


OWN: dict[str, Opponent] = {
    "full grid, 5 seeds": full_grid,
    "one full seed each": one_full_seed,
    "random": random_arm,
    "naive top-1": naive_top_1,
    "constant discard": constant_discard,
    "successive halving": successive_halving,
    "F-race": f_race,
}
