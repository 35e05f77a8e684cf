"""What a policy sees of a draw: trials that it pays for, and no value past the look it has paid for.

A draw is K arms with seeds resampled from their recorded runs. All policies replay the same draws, so differences
between them are paired. Seed s of an arm is the same recorded run whoever asks; seeds are independent resamples, so
fresh seeds are fresh and an arm's truth is the mean that they are drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from podium.trainer.trial.result import Point

from .data import TOKENS_PER_STEP, RecordedArm, Run

SEEDS_PER_ARM = 48
GRID_SEEDS = 5


class PeekError(Exception):
    """A policy asked for a value past its current look."""


class Account:
    """Tokens × price of everything a policy trained."""

    def __init__(self, usd_per_million_tokens: float = 1.0) -> None:
        self.price = usd_per_million_tokens
        self.tokens = 0

    def charge(self, tokens: int) -> None:
        """Add tokens that were trained."""
        self.tokens += tokens

    @property
    def usd(self) -> float:
        """What they cost."""
        return self.tokens / 1e6 * self.price


class Trial:
    """One run of a policy: starts at nothing, is trained further look by look, and shows its past only."""

    def __init__(self, run: Run, total_steps: int, account: Account) -> None:
        self._run, self.total_steps, self._account = run, total_steps, account
        self.look = 0

    def train_to(self, share: float) -> Trial:
        """Train on until a share of the arm's own schedule, charging the steps that are new."""
        steps = round(share * self.total_steps)
        if steps > self.look:
            self._account.charge((steps - self.look) * TOKENS_PER_STEP)
            self.look = steps
        return self

    def value(self, share: float = 1.0) -> float:
        """The last evaluation by a share of the schedule; raises PeekError for one that is not trained yet."""
        steps = round(share * self.total_steps)
        if steps > self.look:
            raise PeekError(f"step {steps} is past the current look at step {self.look}")
        index = int(np.searchsorted(self._run.steps, steps, side="right")) - 1
        if index < 0:
            raise PeekError(f"nothing was evaluated by step {steps}")
        return float(self._run.losses[index])

    def curve(self) -> list[Point]:
        """The evaluations up to the current look, as the trainer writes them."""
        return [
            Point(step=int(step), tokens=int(step) * TOKENS_PER_STEP, val_loss=float(loss))
            for step, loss in zip(self._run.steps, self._run.losses, strict=True)
            if 0 < step <= self.look
        ]


@dataclass(frozen=True)
class Draw:
    """K arms in random order, the first of which is the baseline, and which run stands for each seed of each."""

    arms: tuple[RecordedArm, ...]
    runs: np.ndarray
    """(K, SEEDS_PER_ARM) index of the recorded run."""

    @property
    def truths(self) -> np.ndarray:
        """(K,) nats."""
        return np.array([arm.truth for arm in self.arms])

    @property
    def grid_tokens(self) -> int:
        """Tokens of all arms with five whole seeds each."""
        return sum(arm.total_steps for arm in self.arms) * GRID_SEEDS * TOKENS_PER_STEP

    def whole_tokens(self, arm: int) -> int:
        """Tokens of one whole run of an arm: known to anyone before it is trained."""
        return self.arms[arm].total_steps * TOKENS_PER_STEP


class World:
    """A draw as one policy lives through it."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.account = Account()
        self._trials: dict[tuple[int, int], Trial] = {}

    @property
    def arms(self) -> int:
        """K."""
        return len(self._draw.arms)

    def whole_tokens(self, arm: int) -> int:
        """Tokens of one whole run of an arm."""
        return self._draw.whole_tokens(arm)

    def trial(self, arm: int, seed: int) -> Trial:
        """The trial of an arm and a seed: the same one when asked again, so that nothing is paid for twice."""
        key = (arm, seed)
        if key not in self._trials:
            recorded = self._draw.arms[arm]
            self._trials[key] = Trial(recorded.runs[self._draw.runs[arm, seed]], recorded.total_steps, self.account)
        return self._trials[key]

    def after_steps(self, arm: int, seed: int, steps: int) -> float:
        """The value of a trial after so many steps, or at its end if that is sooner."""
        trial = self.trial(arm, seed)
        share = min(1.0, steps / trial.total_steps)
        return trial.train_to(share).value(share)

    def final(self, arm: int, seed: int) -> float:
        """The final value of a trial, trained to its end."""
        return self.trial(arm, seed).train_to(1.0).value()


def draw_from(arms: list[RecordedArm], k: int, rng: np.random.Generator) -> Draw:
    """K different arms, all of them where there are fewer."""
    return of_arms([arms[index] for index in rng.permutation(len(arms))[:k]], rng)


def of_arms(chosen: list[RecordedArm], rng: np.random.Generator) -> Draw:
    """These arms, each with its seeds resampled from its recorded runs."""
    return Draw(tuple(chosen), np.stack([rng.integers(len(arm.runs), size=SEEDS_PER_ARM) for arm in chosen]))
