"""How well the stage before ranked the arms that this stage ranks: what a cheap stage's ranking is worth.

Spearman's rank correlation of the two stages' means over the arms that both ranked (C. Spearman, American Journal of
Psychology 15, 1904). Limits: the arms were promoted for their rank, so their range is restricted and the correlation
is lower than it would be over all; with few arms it is next to noise, and with fewer than three it is not given.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Any

from podium.components.verdicts.verdict import StageResults, Verdict

LEAST_ARMS = 3


def rank_correlation(verdict: Verdict, results: StageResults) -> dict[str, Any] | None:
    """Of this verdict's ranking with that of the stage before; None where there was none."""
    if not results.previous:
        return None
    before = results.previous[-1]
    first = {row.variant: row.mean for row in before.ranking if row.rank is not None and row.mean is not None}
    second = {row.variant: row.mean for row in verdict.ranking if row.rank is not None and row.mean is not None}
    shared = sorted(first.keys() & second.keys())
    rho = spearman([first[name] for name in shared], [second[name] for name in shared])
    return {"stage": before.stage, "arms": len(shared), "spearman": rho}


def spearman(first: list[float], second: list[float]) -> float | None:
    """Rank correlation, ties at their mean rank; None for fewer than three pairs, or where one side is all alike."""
    if len(first) < LEAST_ARMS:
        return None
    a, b = _ranks(first), _ranks(second)
    middle = (len(a) + 1) / 2
    across = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b))
    return across / spread if spread else None


def _ranks(values: list[float]) -> list[float]:
    order = sorted(values)
    return [(bisect_left(order, value) + bisect_right(order, value) + 1) / 2 for value in values]
