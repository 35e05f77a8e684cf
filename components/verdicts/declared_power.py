"""The power of what a study declares: its proofs' tests, the SD to expect, and a warning where they can hardly succeed.

The SD comes from what the study expects, a past run (pooled over the arms of its last stage), a file of figures, or a
default with its source. Without an expected gap a proof is judged at three SDs: a proof that misses even that more
often than not is not worth its money.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from podium.components.study.cost import run_usd
from podium.components.study.promotion import BeatsBaseline, BestMean, ReachesTarget
from podium.components.study.run import Run
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds
from podium.components.verdicts.power import DEFAULT_SIGMA, DEFAULT_SIGMA_SOURCE, Proof, power
from podium.components.verdicts.ranking import arms_of, pooled
from podium.components.verdicts.samples import read_sample
from podium.trainer.errors import Problem, UserError

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
