"""Draws of equal arms: what each trial's seed adds to a loss that is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tests.benchmarks.replay.data import TOKENS_PER_STEP, RecordedArm, Run

SIGMA = 0.0012
"""SD of the final loss over seeds, nats, of 124M-parameter runs."""
LOSS = 3.28
LOOKS = (0.6, 0.7, 0.8, 0.9)
"""Shares of the schedule at which a kill rule looks."""
STEPS = 3_000


@dataclass(frozen=True)
class Trials:
    """One stage of many draws: (draws, arms, seeds) final losses, and (…, looks) losses at the looks if there are."""

    finals: np.ndarray
    looks: np.ndarray | None = None


def normal(rng: np.random.Generator, shape: tuple[int, int, int], spreads: np.ndarray | None = None) -> Trials:
    """Normal errors; `spreads` (draws, arms) multiplies the SD."""
    errors = rng.normal(0, SIGMA, shape)
    return Trials(LOSS + (errors if spreads is None else errors * spreads[:, :, None]))


def recorded(rng: np.random.Generator, shape: tuple[int, int, int], residuals: np.ndarray) -> Trials:
    """Whole residual curves of recorded runs, so that a look and the end of one trial belong together."""
    drawn = residuals[rng.integers(len(residuals), size=shape)]
    return Trials(LOSS + drawn[..., -1], LOSS + drawn[..., :-1])


def residual_curves(arms: Sequence[RecordedArm], shares: Sequence[float] = (*LOOKS, 1.0)) -> np.ndarray:
    """(runs, shares): each run minus the mean of its arm at shares of its own schedule, nats.

    Scaled by sqrt(n / (n - 1)), since the mean was taken from the same n runs.
    """
    rows = []
    for arm in arms:
        values = np.array([[at(run, share * arm.total_steps) for share in shares] for run in arm.runs])
        rows.append((values - values.mean(axis=0)) * np.sqrt(len(values) / (len(values) - 1)))
    return np.concatenate(rows)


def at(run: Run, step: float) -> float:
    """The last evaluation by a step."""
    return float(run.losses[int(np.searchsorted(run.steps, step, side="right")) - 1])


def look_tokens() -> list[int]:
    """The looks in tokens of a run of STEPS steps."""
    return [round(share * STEPS) * TOKENS_PER_STEP for share in LOOKS]
