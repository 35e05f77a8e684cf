"""Every policy on the same draws: what it spent, what it chose, and what it claimed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .data import RecordedArm, without_difference
from .ladder import Design, ladder, ladder_within
from .opponents import Choice, Opponent
from .reader import Draw, World, draw_from, of_arms

LADDER = "Podium's ladder"
CLAIMING = ("full grid, 5 seeds", "F-race")


@dataclass
class Record:
    """One policy over all draws; lists have one entry a draw."""

    share: list[float] = field(default_factory=list)
    """Tokens over those of the five-seed grid."""
    regret: list[float] = field(default_factory=list)
    """True mean of the choice minus the best true mean, nats."""
    proven: list[bool] = field(default_factory=list)
    """It claimed to have proven its choice better than the baseline."""
    false: list[bool] = field(default_factory=list)
    """It did, and the choice is no better."""
    null_false: list[bool] = field(default_factory=list)
    """It did so in a draw whose arms have one true mean."""

    def add(self, draw: Draw, world: World, choice: Choice) -> None:
        """Note one draw."""
        truths = draw.truths
        proven = choice.claim == "proven"
        self.share.append(world.account.tokens / draw.grid_tokens)
        self.regret.append(float(truths[choice.arm] - truths.min()))
        self.proven.append(proven)
        self.false.append(proven and not truths[choice.arm] < truths[0])


@dataclass
class Outcome:
    """All policies, and the ladder beside each opponent at that opponent's compute."""

    policies: dict[str, Record]
    matched: dict[str, Record]
    designs: dict[str, Design]


def evaluate(
    arms: list[RecordedArm],
    opponents: dict[str, Opponent],
    designs: dict[str, Design],
    *,
    k: int,
    seed: int,
    draws: int,
    tell: Callable[[str], None],
) -> Outcome:
    """Replay `draws` draws of `k` arms, and as many in which no arm differs from another."""
    rng = np.random.default_rng([seed, 4])
    out = Outcome(
        {LADDER: Record(), **{name: Record() for name in opponents}}, {n: Record() for n in opponents}, designs
    )
    for number in range(draws):
        draw = draw_from(arms, k, rng)
        world = World(draw)
        out.policies[LADDER].add(draw, world, ladder(world, designs["ladder"]))
        for name, opponent in opponents.items():
            world = World(draw)
            out.policies[name].add(draw, world, opponent(world, np.random.default_rng([seed, 5, number])))
            spent, world = world.account.tokens, World(draw)
            choice = ladder_within(world, designs[name], spent, np.random.default_rng([seed, 6, number]))
            out.matched[name].add(draw, world, choice)
        _null(arms, opponents, designs, out, k, rng, number)
        if (number + 1) % 100 == 0:
            tell(f"{number + 1} of {draws} draws")
    return out


def _null(arms, opponents, designs, out: Outcome, k: int, rng: np.random.Generator, number: int) -> None:
    draw = of_arms([without_difference(arms)] * k, rng)
    out.policies[LADDER].null_false.append(ladder(World(draw), designs["ladder"]).claim == "proven")
    for name in CLAIMING:
        if name in opponents:
            choice = opponents[name](World(draw), np.random.default_rng([number]))
            out.policies[name].null_false.append(choice.claim == "proven")
