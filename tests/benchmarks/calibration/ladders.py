"""One draw through the whole ladder: screen, promote, prove with fresh seeds, by `decide` and `arm_kill`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.benchmarks.calibration.noise import LOSS, STEPS, Trials, look_tokens
from tests.benchmarks.replay.data import TOKENS_PER_STEP
from tests.benchmarks.replay.studies import BASELINE, Figures, answer, names, seeds_of, study_of

from podium.components.launch.judge import arm_kill
from podium.components.study.verdict import MoreTrials, Verdict
from podium.trainer.trial.result import Point, Status
from podium.trainer.trial.stopping import KillRule

ARMS = 10
SCREEN_SEEDS = 2
PROOF_SEEDS = 5
ALPHA = 0.01


@dataclass(frozen=True)
class Ladder:
    """What the study declares for its proof; the screen promotes by `within_margin`."""

    proof: str
    """`reaches_target`, `beats_baseline` or `best_mean`."""
    most: int = 1
    pivot: bool = False
    broken: bool = False
    """Whether the stages allow broken trials, of which the draws then have some."""
    kill: KillRule | None = None

    @property
    def has_baseline(self) -> bool:
        """A target needs none, so that all ten arms are candidates."""
        return self.proof != "reaches_target"


@dataclass(frozen=True)
class DrawOf:
    """One draw: `finals` (arms, seeds) and `looks` (arms, seeds, looks) by stage, and which trials break."""

    screen: Trials
    proof: Trials
    broken: dict[str, np.ndarray]


def study_for(ladder: Ladder):
    """The study of a ladder."""
    more: dict[str, Any] = {}
    if ladder.proof == "reaches_target":
        more["proof_target"] = LOSS
    if ladder.pivot:
        more["proof_pivot"] = (("most", 1),)
    if ladder.broken:
        more |= {"screen_max_broken": 100, "proof_max_broken": 100, "proof_min_seeds": 2}
    return study_of(
        "within_margin",
        SCREEN_SEEDS,
        ladder.proof,
        PROOF_SEEDS,
        screen_margin=0.05,  # wide enough that the arms' number alone decides
        screen_most=ladder.most,
        screen_tie_break="mean",
        proof_alpha=ALPHA,
        **more,
    )


def climb(ladder: Ladder, draw: DrawOf) -> Verdict:
    """The last verdict: `proven` there is a false proof, since no arm truly differs."""
    study = study_for(ladder)
    labels = names(ARMS) if ladder.has_baseline else [f"arm-{index:02d}" for index in range(ARMS)]
    index = {label: number for number, label in enumerate(labels)}
    seeds = seeds_of("screen", SCREEN_SEEDS)
    screened = answer(study, "screen", _figures(ladder, draw, "screen", labels, index, seeds), seeds)
    assert isinstance(screened, Verdict)
    if screened.decision == "stop":
        return screened
    fresh = seeds_of("proof", PROOF_SEEDS)
    taking_part = [ref.name for ref in screened.promoted]
    while True:
        figures = _figures(ladder, draw, "proof", taking_part, index, fresh)
        verdict = answer(study, "proof", figures, fresh, [screened])
        if not isinstance(verdict, MoreTrials):
            return verdict
        taking_part += [ref.name for ref in verdict.variants]


def with_reused_seeds(ladder: Ladder, draw: DrawOf, *, hidden: bool) -> Verdict:
    """The mistake: the winner's two selection seeds and three new ones go into the proof.

    `hidden` also hides from `decide` that the seeds chose the winner, which its guard would see.
    """
    study = study_for(ladder)
    labels = [f"arm-{index:02d}" for index in range(ARMS)]
    seeds = seeds_of("screen", SCREEN_SEEDS)
    index = {label: number for number, label in enumerate(labels)}
    screened = answer(study, "screen", _figures(ladder, draw, "screen", labels, index, seeds), seeds)
    assert isinstance(screened, Verdict)
    winner = screened.promoted[0].name
    mixed = [*seeds, *seeds_of("proof", PROOF_SEEDS - SCREEN_SEEDS)]
    values = [*draw.screen.finals[index[winner]], *draw.proof.finals[index[winner]]]
    row = {seed: float(value) for seed, value in zip(mixed, values, strict=False)}
    verdict = answer(study, "proof", {winner: row}, mixed, [] if hidden else [screened])
    assert isinstance(verdict, Verdict)
    return verdict


def _figures(
    ladder: Ladder, draw: DrawOf, stage: str, labels: Iterable[str], index: dict[str, int], seeds: list[int]
) -> Figures:
    labels = list(labels)
    trials = getattr(draw, stage)
    killed = _killed(ladder, trials, labels, index, seeds)
    broken = draw.broken.get(stage)
    return {
        label: {
            seed: Status.KILLED
            if label in killed
            else Status.BROKEN
            if broken is not None and broken[index[label], number]
            else float(trials.finals[index[label], number])
            for number, seed in enumerate(seeds)
        }
        for label in labels
    }


def _killed(ladder: Ladder, trials: Trials, labels: list[str], index: dict[str, int], seeds: list[int]) -> set[str]:
    if ladder.kill is None:
        return set()
    curves = {label: curves_of(trials, index[label], seeds) for label in labels}
    return {
        label
        for label in labels
        if label != BASELINE and arm_kill(curves[label], curves[BASELINE], seeds, ladder.kill) is not None
    }


def curves_of(trials: Trials, arm: int, seeds: list[int]) -> dict[int, list[Point]]:
    """The arm's evaluations by seed, as a reader of metrics would give them: the looks, and the end."""
    assert trials.looks is not None
    tokens = [*look_tokens(), STEPS * TOKENS_PER_STEP]
    return {
        seed: [
            Point(step=count // TOKENS_PER_STEP, tokens=count, val_loss=float(loss))
            for count, loss in zip(tokens, [*trials.looks[arm, number], trials.finals[arm, number]], strict=True)
        ]
        for number, seed in enumerate(seeds)
    }
