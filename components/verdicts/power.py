"""Power of a proof before it is paid for: the probability to show a gap, the seeds that it takes, the gap that shows.

Model: seeds of every variant are normal with one SD `sigma`; the winner is better than the mark by `gap`. One-sample t
against a target by the variant's own SD (n - 1 degrees of freedom), z by a known SD, and for a difference to a baseline
with as many seeds the pooled t over all arms of the stage, Dunnett's critical value where several are compared. Under
the gap each statistic has the noncentral t distribution with noncentrality gap / standard error (J. Cohen, "Statistical
power analysis", 1988). Limits: the power of a comparison with several arms is that of the one arm that has the gap;
whether the screening promoted the right arm is another question, and so is a guarded fall-back to Welch's test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from scipy import optimize, stats

from podium.components.verdicts.significance import better_than_control

MOST_SEEDS = 10_000
DEFAULT_SIGMA = 0.0013
DEFAULT_SIGMA_SOURCE = (
    "SD over seeds of the final validation loss of 124M-parameter runs, NanoGPT speedrun, track 1 (nats); "
    "another model or metric has its own: give --sigma or --from"
)


@dataclass(frozen=True)
class Proof:
    """How a stage tests."""

    against: Literal["target", "baseline"]
    alpha: float
    """One-sided, over all comparisons."""
    arms: int = 1
    """Variants that are compared."""
    margin: float = 0.0
    """The gap has to exceed this."""
    known_sigma: bool = False
    """Whether the test knows sigma (z) or estimates it (t)."""
    paired: bool = False
    """Seed by seed; sigma is then that of a variant, and `correlation` what pairing gains."""
    correlation: float = 0.0
    """Between a seed's figures of two variants."""

    def standard_error(self, sigma: float, seeds: int) -> float:
        """Of what is tested."""
        if self.against == "target":
            return sigma / math.sqrt(seeds)
        factor = 2 * (1 - self.correlation) if self.paired else 2
        return sigma * math.sqrt(factor / seeds)

    def degrees_of_freedom(self, seeds: int) -> float:
        """Of the test's variance; infinite for a known one."""
        if self.known_sigma:
            return math.inf
        if self.against == "target" or self.paired:
            return seeds - 1
        return (self.arms + 1) * (seeds - 1)

    def critical(self, seeds: int) -> float:
        """The statistic that has to be exceeded."""
        degrees = self.degrees_of_freedom(seeds)
        if self.arms > 1 and self.against == "baseline" and not self.paired and not self.known_sigma:
            return _dunnett(self.alpha, self.arms, seeds, int(degrees))
        level = self.alpha / self.arms  # the first step of Holm's correction
        return float(stats.norm.isf(level) if math.isinf(degrees) else stats.t.isf(level, degrees))


def power(proof: Proof, gap: float, seeds: int, sigma: float) -> float:
    """Probability that the proof succeeds where the variant is better by `gap`; 0 where this many seeds prove nothing.

    A single seed has power only by a known SD (and no verdict of a stage takes it as a proof).
    """
    degrees = proof.degrees_of_freedom(seeds)
    if degrees < 1:
        return 0.0
    shift = (gap - proof.margin) / proof.standard_error(sigma, seeds)
    critical = proof.critical(seeds)
    if math.isinf(degrees):
        return float(stats.norm.sf(critical - shift))
    return float(stats.nct.sf(critical, degrees, shift)) if abs(shift) < 37 else float(shift > 0)


def seeds_for(proof: Proof, gap: float, sigma: float, wanted: float) -> int | None:
    """The fewest seeds a variant with at least the `wanted` power; None if there are none below 10,000."""
    if gap <= proof.margin:
        return None
    low, high = 1, 2
    while power(proof, gap, high, sigma) < wanted:
        low, high = high, high * 2
        if high > MOST_SEEDS:
            return None
    if power(proof, gap, 1, sigma) >= wanted:
        return 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(proof, gap, middle, sigma) >= wanted else (middle, high)
    return high


def gap_for(proof: Proof, seeds: int, sigma: float, wanted: float) -> float | None:
    """The least gap that this many seeds show with the `wanted` power; None where they show none."""
    if proof.degrees_of_freedom(seeds) < 1:
        return None
    scale, low, high = proof.standard_error(sigma, seeds), 0.0, 1.0

    def short(size: float) -> float:
        return power(proof, proof.margin + size * scale, seeds, sigma) - wanted

    while short(high) < 0:
        low, high = high, high * 2
    return proof.margin + scale * float(optimize.brentq(short, low, high, xtol=1e-9))


@cache
def _dunnett(alpha: float, arms: int, seeds: int, degrees: int) -> float:
    low = float(stats.t.isf(alpha, degrees))
    high = float(stats.t.isf(alpha / arms, degrees))
    sizes = [seeds] * arms

    def excess(statistic: float) -> float:
        return better_than_control(statistic, sizes, seeds, degrees) - alpha

    return float(optimize.brentq(excess, low - 1e-6, high + 1e-6, xtol=1e-9))
