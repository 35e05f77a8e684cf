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
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Literal

from podium.components.study.policy import Policy, policy_of
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds
from podium.components.verdicts.stats import better_than_control, normal_cdf, normal_quantile, t_quantile

MOST_SEEDS = 10_000


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
        return normal_quantile(level) if math.isinf(degrees) else t_quantile(level, degrees)


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
        return normal_cdf(shift - critical)
    from scipy import stats  # 1.4 s to load

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
    from scipy import optimize

    scale, low, high = proof.standard_error(sigma, seeds), 0.0, 1.0

    def short(size: float) -> float:
        return power(proof, proof.margin + size * scale, seeds, sigma) - wanted

    while short(high) < 0:
        low, high = high, high * 2
    return proof.margin + scale * float(optimize.brentq(short, low, high, xtol=1e-9))


@cache
def _dunnett(alpha: float, arms: int, seeds: int, degrees: int) -> float:
    from scipy import optimize

    low, high = t_quantile(alpha, degrees), t_quantile(alpha / arms, degrees)
    sizes = [seeds] * arms

    def excess(statistic: float) -> float:
        return better_than_control(statistic, sizes, seeds, degrees) - alpha

    return float(optimize.brentq(excess, low - 1e-6, high + 1e-6, xtol=1e-9))


# The power of what a study declares: its proofs' tests, and a warning where they can hardly succeed.
#
# Without an expected gap a proof is judged at three SDs: a proof that misses even that more often than not is not worth
# its money.

HARDLY = 0.5
"""Power below which `podium plan` warns."""
LARGE_GAP_SDS = 3.0


class ProofPolicy(Policy):
    """A policy that tests its winner, so that the power of a proof can be told before it is paid for."""

    @abstractmethod
    def proof(self, study: Study, stage: str, arms: int) -> Proof:
        """How the stage tests. `arms` are the variants beside the baseline, at least 1."""

    def power_warning(self, study: Study, stage: str, arms: int) -> str:
        """Where the declared seeds can hardly show the expected gap; a large one where the study expects none."""
        seeds, expected = len(stage_seeds(study, stage)), study.stages[stage].expected
        gap, sigma = (LARGE_GAP_SDS, 1.0) if expected is None else (expected.gap, expected.sigma)
        proof = self.proof(study, stage, max(1, arms))
        # of a single seed the plan says already that it never proves
        found = power(proof, gap, seeds, sigma) if seeds > 1 else HARDLY
        if found >= HARDLY:
            return ""
        size = f"a gap of {gap:g}" + (" SDs" if expected is None else "")
        return (
            f"{stage}: its proof can hardly succeed: {seeds} seeds at alpha {proof.alpha:g} show {size} with a "
            f"power of {found:.2f} (podium power says how many it takes)"
        )


def proof_of(study: Study, stage: str, arms: int) -> Proof | None:
    """How a stage tests; None where its policy tests nothing. `arms` are the variants beside the baseline."""
    policy = policy_of(study, stage)
    return policy.proof(study, stage, max(1, arms)) if isinstance(policy, ProofPolicy) else None
