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
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from podium.components.verdicts.ranking import Arm, pooled

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


def noise_of_difference(arm: Arm, control: Arm, arms: Sequence[Arm], variance: str = "guarded") -> Noise | None:
    """The noise of `arm` minus `control`, pooled over `arms` (both among them); None where nothing estimates it.

    `variance` is guarded, pooled or welch.
    """
    welch = _welch(arm, control)
    if variance == "welch":
        return welch
    shared = pooled(arms)
    if shared is None or shared.sd == 0:
        return None
    if variance == "guarded" and welch is not None and (differs(arm, arms) or differs(control, arms)):
        return welch
    error = shared.sd * math.sqrt(1 / arm.n + 1 / control.n)
    return Noise(error, shared.degrees_of_freedom, "pooled", shared.sd)


def differs(arm: Arm, arms: Sequence[Arm]) -> bool:
    """Whether the arm's variance differs from that of the other arms together."""
    others = pooled(other for other in arms if other.name != arm.name)
    if others is None or arm.n < 2:
        return False
    own = arm.squares / (arm.n - 1)
    if own == 0 or others.sd == 0:
        return own > 0 or others.sd > 0
    ratio = own / others.sd**2
    upper = float(stats.f.sf(ratio, arm.n - 1, others.degrees_of_freedom))
    return 2 * min(upper, 1 - upper) < GUARD_LEVEL


def _welch(arm: Arm, control: Arm) -> Noise | None:
    if arm.n < 2 or control.n < 2:
        return None
    parts = [each.squares / (each.n - 1) / each.n for each in (arm, control)]
    total = math.fsum(parts)
    if total == 0:
        return None
    degrees = total**2 / math.fsum(part**2 / (each.n - 1) for part, each in zip(parts, (arm, control), strict=True))
    return Noise(math.sqrt(total), degrees, "welch")
