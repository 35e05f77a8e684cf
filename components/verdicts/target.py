"""Tests of means: one arm against a target, and Holm's correction where several claims are made at once.

Student, "The probable error of a mean", Biometrika 6 (1908); S. Holm, "A simple sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 6 (1979).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True)
class TargetTest:
    """One arm against the target."""

    statistic: float | None
    """t, or z by a known SD; below 0 the mean is under the target. None where nothing estimates the noise."""
    degrees_of_freedom: float | None
    p: float | None
    """One-sided, not adjusted."""
    error: float | None
    """Standard error of the mean."""
    upper: float | None
    """Upper end of the one-sided 1 - alpha interval of the mean."""


def against_target(
    mean: float, sd: float | None, n: int, target: float, *, alpha: float, sigma: float | None = None
) -> TargetTest:
    """One-sided test of mean < target: Student's t by `sd`, or z by a known `sigma`."""
    spread = sigma if sigma is not None else sd
    if spread is None or spread == 0:
        return TargetTest(None, None, None, None, None)
    error = spread / math.sqrt(n)
    statistic = (mean - target) / error
    degrees = None if sigma is not None else n - 1
    p = special.ndtr(statistic) if degrees is None else special.stdtr(degrees, statistic)
    quantile = special.ndtri(alpha) if degrees is None else special.stdtrit(degrees, alpha)
    return TargetTest(statistic, degrees, float(p), error, mean - float(quantile) * error)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p of each (Scandinavian Journal of Statistics 6, 1979)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for index, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        highest = max(highest, min(1.0, (len(p_values) - index) * p))
        adjusted[name] = highest
    return adjusted
