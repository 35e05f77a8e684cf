"""Podium's ladder on a draw, decided by the product's `decide`.

Screen as many arms as the money reaches, each with its whole schedule, since ranks at a part of it hardly carry over;
`within_margin` promotes; fresh seeds of the promoted and the baseline prove, and `best_mean` decides by them alone.
Where the money does not reach beyond the screen, that is the only stage and its winner a candidate. For little money
there is a short screen too: a fixed number of steps for every arm, whoever leads gets a whole run of a fresh seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from podium.components.study.verdict import MoreTrials, Verdict

from .data import TOKENS_PER_STEP
from .opponents import ALPHA, Choice
from .reader import World
from .studies import BASELINE, answer, names, seeds_of, study_of

PROOF_SEEDS_AT = 16
"""World's seed numbers from here on are the proof's: never one of the screen's."""
MOST_PROOF_SEEDS = 32
ANY_DISTANCE = 100.0
"""A margin, nats, that leaves it to the number of arms who goes on."""


@dataclass(frozen=True)
class Design:
    """What a study would declare."""

    screen_seeds: int
    most: int
    """Variants that `within_margin` promotes at most, the baseline not counted."""
    proof_seeds: int = 5
    margin: float = 0.003
    """Within this of the leader, nats: about 2.5 SD of a seed."""
    short_steps: int | None = None
    """Steps of the screen where it is a short one, and the proof then no proof: one fresh seed, no baseline."""

    def __str__(self) -> str:
        """One line for a table."""
        return f"{self.screen_seeds} + {self.proof_seeds} seeds, top {self.most}"


def ladder(world: World, design: Design, *, arms: int | None = None) -> Choice:
    """The choice of a study of the first `arms` arms (all by default)."""
    labels = names(arms or world.arms)
    index = {label: arm for arm, label in enumerate(labels)}
    seeds = seeds_of("screen", design.screen_seeds)
    proving = design.proof_seeds > 0 and len(labels) > 1
    figures = {
        label: {seed: world.final(index[label], number) for number, seed in enumerate(seeds)} for label in labels
    }
    if not proving:
        study = study_of("best_mean", design.screen_seeds, "best_mean", 0)
        return Choice(index[_winner(answer(study, "screen", figures, seeds))])
    study = study_of(
        "within_margin",
        design.screen_seeds,
        "best_mean",
        design.proof_seeds,
        screen_margin=design.margin,
        screen_most=design.most,
        screen_tie_break="mean",
        proof_alpha=ALPHA,
        proof_min_seeds=min(2, design.proof_seeds),
    )
    screened = answer(study, "screen", figures, seeds)
    assert isinstance(screened, Verdict)
    if screened.decision == "stop":  # no variant is near the leading baseline
        return Choice(index[BASELINE], "not proven")
    fresh = seeds_of("proof", design.proof_seeds)
    proofs = {
        ref.name: {seed: world.final(index[ref.name], PROOF_SEEDS_AT + number) for number, seed in enumerate(fresh)}
        for ref in screened.promoted
    }
    proven = answer(study, "proof", proofs, fresh, [screened])
    return Choice(index[_winner(proven)], "proven" if isinstance(proven, Verdict) and proven.proven else "not proven")


def ladder_within(world: World, design: Design, tokens: int, rng: np.random.Generator) -> Choice:
    """The choice of a study that may spend so many tokens, as the opponent beside it did on the same draw.

    Arms first, each with the design's screening seeds, then fresh seeds of the promoted with what is left. A last arm
    or seed that only a part of the money is left for is run with that part as its probability, so that over the draws
    the ladder spends what its opponent spends.
    """
    if design.short_steps is not None:
        return _short_screen(world, design.short_steps, tokens, rng)
    costs = [world.whole_tokens(arm) * design.screen_seeds for arm in range(world.arms)]
    # a study has a baseline, so the first arm is always paid for; where that was more than there is, a part of the
    # money for the second would spend too much on the whole
    paid, arms = costs[0], 1
    while arms < world.arms and _pays(tokens - paid, costs[arms], rng if arms > 1 else None):
        paid += costs[arms]
        arms += 1
    # who is promoted is not known yet: a seed of the proof costs an average arm's for each
    per_seed = sum(costs) / len(costs) / design.screen_seeds * (design.most + 1)
    proof_seeds, left = 0, tokens - paid
    while arms == world.arms and proof_seeds < MOST_PROOF_SEEDS and _pays(left, per_seed, rng):
        left -= per_seed
        proof_seeds += 1
    paid_design = Design(design.screen_seeds, design.most, proof_seeds, design.margin)
    return ladder(world, paid_design, arms=arms)


def _short_screen(world: World, steps: int, tokens: int, rng: np.random.Generator) -> Choice:
    """So many steps of every arm, and a whole fresh run of as many leaders as the rest pays for: one at least."""
    cost = steps * TOKENS_PER_STEP
    whole = sum(world.whole_tokens(arm) for arm in range(world.arms)) / world.arms
    arms = 1
    while arms < world.arms and _pays(tokens - whole - arms * cost, cost, rng):
        arms += 1
    most, left = 1, tokens - arms * cost - whole
    while most < arms and _pays(left, whole, rng):
        left -= whole
        most += 1
    labels = [f"arm-{index:02d}" for index in range(arms)]
    seeds, fresh = seeds_of("screen", 1), seeds_of("proof", 1)
    study = study_of(
        "within_margin", 1, "best_mean", 1, screen_margin=ANY_DISTANCE, screen_most=most, screen_tie_break="mean"
    )
    figures = {label: {seeds[0]: world.after_steps(arm, 0, steps)} for arm, label in enumerate(labels)}
    screened = answer(study, "screen", figures, seeds)
    assert isinstance(screened, Verdict)
    finals = {ref.name: {fresh[0]: world.final(labels.index(ref.name), PROOF_SEEDS_AT)} for ref in screened.promoted}
    return Choice(labels.index(_winner(answer(study, "proof", finals, fresh, [screened]))))


def _pays(left: float, cost: float, rng: np.random.Generator | None) -> bool:
    return left >= cost or (rng is not None and left > 0 and rng.random() < left / cost)


def _winner(verdict: Verdict | MoreTrials) -> str:
    assert isinstance(verdict, Verdict)
    return verdict.winner or BASELINE
