"""The noise of a difference between two arms: one variance for all arms, or each its own where they differ.

With 3 seeds an arm, the variance pooled over arms asks for a third of the margin that each arm's own would. It is wrong
for an arm that is noisier than the rest: its difference looks surer than it is. So each pair is guarded: an F test of
the arm's and the control's variance against that of all other arms together, two-sided at 10 % each; where it rejects,
the pair is compared by Welch's t. Brown-Forsythe's test, robust as it is, has next to no power at 2 to 5 seeds.

Sources: B. L. Welch, Biometrika 34 (1947); G. K. Smyth, "Linear models and empirical Bayes methods" (2004) for the
moderated t, whose limit with one common variance the pooled t is. Limits: normal errors; a pretest costs a little of
the level, less than the pooling of unequal variances does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from scipy import special

from podium.components.verdicts.ranking import Arm

GUARD_LEVEL = 0.10
"""Two-sided level at which an arm's variance counts as different from the others'."""


@dataclass(frozen=True)
class Noise:
    """The standard error of a difference of two means."""

    error: float
    degrees_of_freedom: float
    method: str
    """`pooled` or `welch`."""
    sd: float | None = None
    """The pooled SD; None for Welch's."""


@dataclass(frozen=True)
class Pool:
    """The variance of all arms together, from which each can be set apart."""

    squares: float
    degrees_of_freedom: int

    @classmethod
    def of(cls, arms: Iterable[Arm]) -> Self:
        """Over these arms."""
        able = [arm for arm in arms if arm.n]
        return cls(math.fsum(arm.squares for arm in able), sum(arm.n - 1 for arm in able))

    @property
    def sd(self) -> float | None:
        """None where no arm has two seeds."""
        return math.sqrt(self.squares / self.degrees_of_freedom) if self.degrees_of_freedom > 0 else None

    def differs(self, arm: Arm) -> bool:
        """Whether the arm's variance differs from that of the other arms together."""
        degrees = self.degrees_of_freedom - (arm.n - 1)
        if arm.n < 2 or degrees < 1:
            return False
        own, others = arm.squares, max(0.0, self.squares - arm.squares)
        if own == 0 or others <= 1e-12 * self.squares:
            return own > 0 or others > 0
        ratio = (own / (arm.n - 1)) / (others / degrees)
        upper = float(special.fdtrc(arm.n - 1, degrees, ratio))
        return 2 * min(upper, 1 - upper) < GUARD_LEVEL


def noise_of_difference(arm: Arm, control: Arm, pool: Pool, variance: str = "guarded") -> Noise | None:
    """The noise of `arm` minus `control`, both among the arms of `pool`; None where nothing estimates it.

    `variance` is guarded, pooled or welch.
    """
    welch = _welch(arm, control)
    if variance == "welch":
        return welch
    if not pool.sd:
        return None
    if variance == "guarded" and welch is not None and (pool.differs(arm) or pool.differs(control)):
        return welch
    return Noise(pool.sd * math.sqrt(1 / arm.n + 1 / control.n), pool.degrees_of_freedom, "pooled", pool.sd)


def _welch(arm: Arm, control: Arm) -> Noise | None:
    if arm.n < 2 or control.n < 2:
        return None
    parts = [each.squares / (each.n - 1) / each.n for each in (arm, control)]
    total = math.fsum(parts)
    if total == 0:
        return None
    degrees = total**2 / math.fsum(part**2 / (each.n - 1) for part, each in zip(parts, (arm, control), strict=True))
    return Noise(math.sqrt(total), degrees, "welch")
