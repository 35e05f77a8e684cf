"""A central composite design: a two-level core, two axial points a numeric factor, repeats; or a plain grid.

Coded units: a factor's levels are -2, -1, 0, 1, 2 (lowest, core low, centre, core high, highest). The core is the
largest of a full factorial, a fraction of resolution V and one of resolution IV that fits beside the axial points
(`pydoe`): at IV main effects are clear of each other and of two-factor interactions, which may be aliased among
themselves; which, is reported. Source: G. E. P. Box, K. B. Wilson, JRSS B 13 (1951); D. C. Montgomery, "Design and
Analysis of Experiments". Limits: a categorical factor has two levels and lives in the core; its axial points alternate
between them by factor, so that it stays uncorrelated with every numeric one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_REPEATS = 10
"""Seeds that a stage may have (`schema.MAX_SEEDS_BY_COUNT`)."""
LEAST_CENTRES = 3
MOST_FACTORS = 8
"""More do not fit into about 36 trials at resolution IV."""


@dataclass(frozen=True)
class Point:
    """One point: a coded level a factor, in the factors' order."""

    name: str
    levels: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Design:
    """Points, and what their estimates mix."""

    kind: str
    points: tuple[Point, ...]
    resolution: str = ""
    core: int = 0
    """Runs of the core."""
    aliases: tuple[str, ...] = field(default=())
    """Sets of main effects and two-factor interactions that the core can't tell apart: `A:B = C:D`."""

    @property
    def trials(self) -> int:
        """With repeats."""
        return sum(point.repeats for point in self.points)


def composite(names: Sequence[str], numeric: Sequence[bool], *, trials: int) -> Design | None:
    """Core and axial points over these factors, the core repeated where there is room; None where they do not fit.

    What is left of `trials` is for repeats of the centre and of the best point.
    """
    fitting = _core(len(names), sum(numeric), trials)
    if fitting is None:
        return None
    core, resolution = fitting
    axial = 2 * sum(numeric)
    twice = 2 * len(core) + axial + 2 * LEAST_CENTRES + 2 <= trials
    points = [
        Point(f"core-{i:02d}", tuple(int(level) for level in row), 2 if twice else 1)
        for i, row in enumerate(core, start=1)
    ]
    pair = 0
    for index, is_numeric in enumerate(numeric):
        if not is_numeric:
            continue
        for end, word in ((-2, "low"), (2, "high")):
            levels = [0 if each else (1 if pair % 2 else -1) for each in numeric]
            levels[index] = end
            points.append(Point(f"axial-{_short(names[index])}-{word}", tuple(levels)))
        pair += 1
    return Design("central composite", tuple(points), resolution, len(core), tuple(aliases(core, names)))


def grid_counts(most: Sequence[int], fixed: Sequence[bool], *, trials: int) -> tuple[tuple[int, ...], int]:
    """Levels a factor and repeats of every point, nearest to this many trials; five levels a numeric factor at least.

    `most` is how many levels a factor has at most; a `fixed` one (categorical) takes just these.
    """
    sizes = [m if f else min(5, m) for m, f in zip(most, fixed, strict=True)]
    least = 5 if math.prod(sizes) <= trials else 3
    choices = [[m] if f else list(range(min(least, m), min(12, m) + 1)) for m, f in zip(most, fixed, strict=True)]
    best: tuple[tuple[int, int, int], tuple[int, ...], int] | None = None
    for levels in itertools.product(*choices):
        size = math.prod(levels)
        for repeats in range(1, MOST_REPEATS + 1):
            # near the number, then at least three repeats of a single factor's points, then even
            few = max(0, (3 if len(levels) == 1 else 1) - repeats)
            key = (abs(size * repeats - trials) + 4 * few, max(levels) - min(levels), repeats)
            if best is None or key < best[0]:
                best = key, levels, repeats
    assert best is not None
    return best[1], best[2]


def aliases(core: Sequence[Sequence[float]], names: Sequence[str]) -> list[str]:
    """Sets of main effects and two-factor interactions that are one and the same column of the core."""
    import numpy as np
    from pydoe import fracfact_aliasing  # most of a second, which only this policy needs

    letters = [chr(ord("a") + index) for index in range(len(names))]
    by_letter = dict(zip(letters, names, strict=True))
    found, _ = fracfact_aliasing(np.array(core))
    told = []
    for line in found:
        terms = [term for term in line.split(" = ") if len(term) <= 2]
        if len(terms) > 1:
            told.append(" = ".join(":".join(by_letter[letter] for letter in term) for term in terms))
    return told


def _core(factors: int, numeric: int, trials: int) -> tuple[list[list[float]], str] | None:
    from pydoe import ff2n, fracfact_by_res

    if factors > MOST_FACTORS:
        return None

    room = trials - 2 * numeric - LEAST_CENTRES - 1
    tries = [("full", ff2n(factors))]
    tries += [(f"{word} or better", fracfact_by_res(factors, number)) for word, number in (("V", 5), ("IV", 4))]
    for resolution, rows in tries:
        if len(rows) <= room or (resolution.startswith("IV") and len(rows) <= room + LEAST_CENTRES):
            return rows.tolist(), resolution
    return None


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", "-")
