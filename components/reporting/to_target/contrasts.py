"""What changing an axis does to time, steps and loss: matched comparisons, with the noise that replicates show.

Two levels are compared within pairs: configurations of one stage that differ in nothing else. Times and steps are
compared as ratios (differences of logarithms), losses as differences; a pair's cells are means over their replicates.
The noise is the SD over replicates, pooled over all cells; a pair's error follows from it and from how many replicates
its cells have, and the interval is Student's with the noise's degrees of freedom. Limits: the effect is taken to be the
same in every pair; a miss counts with the time it trained, so where one takes part the effect is a bound; it says
nothing of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from podium.components.reporting.to_target.runs import TimedRun, by_cell

LEVEL = 0.95


@dataclass(frozen=True)
class Noise:
    """SD over replicates, and on how many degrees of freedom it rests."""

    sd: float
    degrees: int


@dataclass(frozen=True)
class Estimate:
    """An effect: of logarithms for times and steps, in nats for losses."""

    value: float
    error: float | None
    """Standard error; None without replicates."""
    degrees: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two-sided, at 95 %."""
        if self.error is None:
            return None
        half = float(stdtrit(self.degrees, (1 + LEVEL) / 2)) * self.error
        return self.value - half, self.value + half

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out that there is no effect."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Contrast:
    """One level against another."""

    pairs: int
    missed_before: int
    missed_after: int
    """Runs at either level that did not reach the target: they would have taken longer."""
    seconds: Estimate
    steps: Estimate
    step_seconds: Estimate
    """Seconds a step."""
    loss: Estimate | None
    """At equal tokens; None where no pair has both losses."""

    @property
    def is_faster(self) -> bool:
        """Whether the new level is shown to be faster, whatever the misses hide."""
        return self.seconds.sure and self.seconds.value < 0 and not self.missed_after

    @property
    def is_slower(self) -> bool:
        """Whether it is shown to be slower."""
        return self.seconds.sure and self.seconds.value > 0 and not self.missed_before

    @property
    def bound(self) -> str:
        """What the ratio of times is: itself, at least, at most, or neither."""
        return {(False, False): "", (False, True): "≥ ", (True, False): "≤ ", (True, True): "≈ "}[
            bool(self.missed_before), bool(self.missed_after)
        ]


Measure = Callable[[TimedRun], float | None]
MEASURES: dict[str, Measure] = {
    "seconds": lambda run: math.log(run.seconds),
    "steps": lambda run: math.log(max(run.steps, 1)),
    "step_seconds": lambda run: math.log(run.seconds / max(run.steps, 1)),
    "loss": lambda run: run.loss,
}


def noise_of(runs: Sequence[TimedRun], measure: Measure) -> Noise | None:
    """The SD over replicates, pooled; None where nothing was repeated."""
    squares, degrees = [], 0
    for cell in by_cell([run for run in runs if run.reached]).values():
        values = [value for run in cell if (value := measure(run)) is not None]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            squares += [(value - mean) ** 2 for value in values]
            degrees += len(values) - 1
    return Noise(math.sqrt(math.fsum(squares) / degrees), degrees) if degrees else None


def contrast(runs: Sequence[TimedRun], axes: Sequence[str], change: Mapping[str, tuple[Any, Any]]) -> Contrast | None:
    """The effect of `change`, axis → (from, to), over all pairs; None without a pair. `axes` are the study's."""
    places = {axes.index(axis): levels for axis, levels in change.items()}
    cells = by_cell(runs)
    pairs = []
    for (stage, values), cell in cells.items():
        if all(values[place] == levels[0] for place, levels in places.items()):
            other = tuple(places[i][1] if i in places else value for i, value in enumerate(values))
            if (stage, other) in cells:
                pairs.append((cell, cells[stage, other]))
    if not pairs:
        return None
    found = {name: _estimate(runs, pairs, measure) for name, measure in MEASURES.items()}
    seconds, steps, step_seconds = found["seconds"], found["steps"], found["step_seconds"]
    assert seconds is not None
    assert steps is not None
    assert step_seconds is not None
    before, after = (sum(not run.reached for pair in pairs for run in pair[side]) for side in (0, 1))
    return Contrast(len(pairs), before, after, seconds, steps, step_seconds, found["loss"])


def _estimate(
    runs: Sequence[TimedRun], pairs: Sequence[tuple[list[TimedRun], list[TimedRun]]], measure: Measure
) -> Estimate | None:
    differences, weights = [], []
    for before, after in pairs:
        a, b = ([value for run in cell if (value := measure(run)) is not None] for cell in (before, after))
        if a and b:
            differences.append(math.fsum(b) / len(b) - math.fsum(a) / len(a))
            weights.append(1 / len(a) + 1 / len(b))
    if not differences:
        return None
    noise = noise_of(runs, measure)
    value = math.fsum(differences) / len(differences)
    if noise is None:
        return Estimate(value, None, 0)
    return Estimate(value, noise.sd * math.sqrt(math.fsum(weights)) / len(differences), noise.degrees)
