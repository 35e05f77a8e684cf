"""Recorded training runs: arms (variant, total steps) with the evaluations of every seed.

A CSV with the columns `variant,total_steps,run,step,val_loss`, gzipped or not. An arm is a variant at one length: its
schedule is its own, so a look is a share of that schedule and its price is the tokens it takes. A run whose log lacks
the first part of its curve can't be looked at early and is left out, as is an arm with fewer than five runs left.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

TOKENS_PER_STEP = 524_288
"""Batch of the speedrun's third track, the same for every arm."""
MIN_RUNS = 5
EARLIEST_LOOK = 1 / 9
"""The first rung of η = 3 with three rungs; every run kept has an evaluation by then."""
DEFAULT = Path(os.environ.get("PODIUM_TEST_DATA", "../shared/data")) / "speedrun_track3_curves.csv.gz"


@dataclass(frozen=True)
class Run:
    """The evaluations of one seed, in the order of steps."""

    steps: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class RecordedArm:
    """A variant at one length."""

    name: str
    total_steps: int
    runs: tuple[Run, ...]

    @property
    def finals(self) -> np.ndarray:
        """The last value of every run, nats."""
        return np.array([run.losses[-1] for run in self.runs])

    @property
    def truth(self) -> float:
        """The mean over all recorded seeds, which the replay takes for the arm's true loss."""
        return float(self.finals.mean())


def load(path: Path = DEFAULT) -> list[RecordedArm]:
    """The arms that can be replayed, by name; raises SystemExit where the file lacks a column or has no such arm."""
    table = pd.read_csv(path)
    missing = {"variant", "total_steps", "run", "step", "val_loss"} - set(table.columns)
    if missing:
        raise SystemExit(f"{path} lacks the columns {', '.join(sorted(missing))}")
    arms = []
    for (variant, total), rows in table.groupby(["variant", "total_steps"], sort=True):
        runs = [
            Run(run["step"].to_numpy(), run["val_loss"].to_numpy())
            for _, run in rows.sort_values("step").groupby("run")
        ]
        whole = tuple(run for run in runs if run.steps[-1] == total and _seen_early(run, total))
        if len(whole) >= MIN_RUNS:
            arms.append(RecordedArm(f"{variant}@{total}", int(total), whole))
    if not arms:
        raise SystemExit(f"{path} has no arm with {MIN_RUNS} runs of whole curves")
    return arms


def halves(arms: list[RecordedArm], split: int | None = None) -> tuple[list[RecordedArm], list[RecordedArm]]:
    """The arms that settings are fixed on, and those that are reported.

    Every other arm by name, which starts with the date in the speedrun's data: both halves hold early and late work.
    `split` gives random halves instead, another pair for each number.
    """
    if split is not None:
        order = np.random.default_rng([split, 7]).permutation(len(arms))
        arms = [arms[index] for index in order]
    return arms[0::2], arms[1::2]


def without_difference(arms: list[RecordedArm]) -> RecordedArm:
    """An arm with the final residuals of all recorded runs, for draws in which no arm truly differs from another.

    Resampling one arm's five runs would show the same run twice in a sample, and too little spread. Residuals are
    scaled by sqrt(n / (n - 1)), since each arm's mean was taken from them.
    """
    length = round(float(np.mean([arm.total_steps for arm in arms])))
    mean = float(np.mean([arm.truth for arm in arms]))
    residuals = np.concatenate(
        [(arm.finals - arm.truth) * np.sqrt(len(arm.runs) / (len(arm.runs) - 1)) for arm in arms]
    )
    runs = tuple(Run(np.array([length]), np.array([mean + residual])) for residual in residuals)
    return RecordedArm("no difference", length, runs)


def _seen_early(run: Run, total: int) -> bool:
    return any(0 < step <= EARLIEST_LOOK * total for step in run.steps)
