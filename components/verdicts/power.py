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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from scipy import optimize, stats

from podium.components.policies.schema import BeatsBaseline, BestMean, ReachesTarget
from podium.components.study.cost import run_usd
from podium.components.study.run import Run
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds
from podium.components.verdicts.arms import arms_of, pooled
from podium.components.verdicts.samples import read_sample
from podium.components.verdicts.stats import better_than_control
from podium.trainer.trial.errors import Problem, UserError

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


# The power of what a study declares: its proofs' tests, the SD to expect, and a warning where they can hardly succeed.
#
# The SD comes from what the study expects, a past run (pooled over the arms of its last stage), a file of figures, or a
# default with its source. Without an expected gap a proof is judged at three SDs: a proof that misses even that more
# often than not is not worth its money.

HARDLY = 0.5
"""Power below which `podium plan` warns."""
LARGE_GAP_SDS = 3.0


@dataclass(frozen=True)
class Noise:
    """An SD over seeds and where it comes from."""

    sigma: float
    source: str


@dataclass(frozen=True)
class DeclaredPower:
    """A stage's proof at its declared seeds."""

    stage: str
    proof: Proof
    seeds: int
    gap: float
    """In the metric's unit where the study expects one with an SD, else in SDs."""
    sigma: float
    source: str
    power: float
    usd: float | None
    """What the stage's proof costs as declared; None where it is not priced."""

    @property
    def warning(self) -> str:
        """What `podium plan` says of it; empty where it can well succeed."""
        if self.power >= HARDLY:
            return ""
        seeds = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"
        gap = f"a gap of {self.gap:g}" + ("" if self.source else " SDs")
        if self.seeds == 1:
            return ""  # the plan says already that one seed never proves
        return (
            f"{self.stage}: its proof can hardly succeed: {seeds} at alpha {self.proof.alpha:g} show {gap} with a "
            f"power of {self.power:.2f} (podium power says how many it takes)"
        )


def proof_of(study: Study, stage: str, arms: int) -> Proof | None:
    """How a stage proves; None where its policy tests nothing. `arms` are the variants beside the baseline."""
    policy = study.stages[stage].promotion
    arms = max(1, arms)
    if isinstance(policy, BestMean):
        return Proof("baseline", policy.alpha, arms)
    if isinstance(policy, BeatsBaseline):
        ran = stage not in study.baseline.recorded and policy.threshold is None
        return Proof("baseline" if ran else "target", policy.alpha, arms, policy.margin, paired=policy.paired and ran)
    if isinstance(policy, ReachesTarget):
        return Proof("target", policy.alpha, arms, known_sigma=policy.sigma is not None)
    return None


def declared_powers(study: Study, arms: dict[str, int]) -> Iterator[DeclaredPower]:
    """Of every stage that is a proof. `arms`: stage → variants beside the baseline, at most."""
    for name, stage in study.stages.items():
        proof = proof_of(study, name, arms.get(name, 1))
        if not stage.proof or proof is None:
            continue
        seeds = len(stage_seeds(study, name))
        expected = stage.expected
        gap, sigma, source = (
            (expected.gap, expected.sigma, expected.source) if expected is not None else (LARGE_GAP_SDS, 1.0, "")
        )
        each = run_usd(stage.price, max(stage.resources.gpus_per_trial, 1))
        trials = seeds * (max(1, arms.get(name, 1)) + (proof.against == "baseline"))
        usd = None if each is None else each * trials
        yield DeclaredPower(name, proof, seeds, gap, sigma, source, power(proof, gap, seeds, sigma), usd)


def noise_from(source: str, *, metric: str, column: str | None = None) -> Noise:
    """The SD over seeds in a run (pooled over the arms of its last stage that has two seeds) or a file of figures.

    Raises UserError where there is none.
    """
    path = Path(source)
    if path.is_file() or (path / "results.jsonl").is_file():
        sample = read_sample(source, metric=metric, column=column)
        if not sample.sd:
            raise UserError(Problem("--from", f"{source} has no spread: {len(sample.values)} figures"))
        return Noise(sample.sd, f"SD of {len(sample.values)} figures in {source}")
    return noise_of_run(Run.open(source))


def noise_of_run(run: Run) -> Noise:
    """The SD over seeds of a run's last stage that has one, pooled over its arms. Raises UserError where none has."""
    for stage in reversed(run.stages):
        arms = arms_of(run.results(stage), baseline=run.study.baseline.variant, min_seeds=2)
        found = pooled(arm for arm in arms if not arm.why_not)
        if found is not None and found.sd > 0 and math.isfinite(found.sd):
            count = sum(not arm.why_not for arm in arms)
            metric = run.study.stages[stage].promotion.metric
            return Noise(found.sd, f"SD of {metric} in {run.id}/{stage}, pooled over {count} arms")
    raise UserError(Problem("--from", f"run {run.id} has no stage with two finished seeds of a variant"))


def default_noise() -> Noise:
    """The SD that is assumed where nothing says another."""
    return Noise(DEFAULT_SIGMA, DEFAULT_SIGMA_SOURCE)
