"""Arms: a variant's trials of one stage, their mean and spread, and who can be ranked.

A killed, diverged, collapsed or out-of-memory seed is what its variant did: the arm is not ranked by its surviving
seeds, which would be the better ones. A broken or missing trial is the machine's doing: the arm needs `min_seeds`
others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from podium.components.verdicts.verdict import ArmSummary, StageResults, TrialOutcome, VariantRef
from podium.trainer.result import Status

FAILED = (Status.KILLED, Status.DIVERGED, Status.COLLAPSED, Status.OUT_OF_MEMORY)
"""Ends that are the variant's own doing."""
MISSING = "missing"
"""What a trial without a result is called among the statuses."""


@dataclass(frozen=True)
class Arm:
    """A variant with its values by seed; only finite ones are values."""

    variant: VariantRef
    values: dict[int, float]
    statuses: dict[int, str]
    why_not: str
    """Why it can't be ranked; empty if it can."""
    is_baseline: bool

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def n(self) -> int:
        """Seeds with a value."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over seeds, summed exactly, so that no order of seeds changes it."""
        return math.fsum(self.values.values()) / self.n

    @property
    def squares(self) -> float:
        """Sum of squared deviations from the mean."""
        mean = self.mean
        return math.fsum((value - mean) ** 2 for value in self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else None


@dataclass(frozen=True)
class Pooled:
    """Variance pooled over arms: the same noise is assumed in each."""

    sd: float
    degrees_of_freedom: int


def arms_of(results: StageResults, *, baseline: str, min_seeds: int) -> list[Arm]:
    """An arm for each variant of the stage, by name, the baseline first; the order of outcomes has no influence."""
    by_variant: dict[str, dict[int, TrialOutcome]] = {ref.name: {} for ref in results.variants}
    for outcome in sorted(results.outcomes, key=_order):
        if outcome.variant in by_variant:
            by_variant[outcome.variant].setdefault(outcome.seed, outcome)
    arms = []
    for ref in sorted(results.variants, key=lambda ref: (ref.name != baseline, ref.name)):
        outcomes = by_variant[ref.name]
        seeds = sorted({*results.seeds, *outcomes})
        statuses = {seed: str(outcomes[seed].status) if seed in outcomes else MISSING for seed in seeds}
        values = {
            seed: outcome.value
            for seed, outcome in sorted(outcomes.items())
            if outcome.value is not None and math.isfinite(outcome.value)
        }
        arms.append(Arm(ref, values, statuses, _why_not(statuses, values, min_seeds), ref.name == baseline))
    return arms


def _order(outcome: TrialOutcome) -> tuple[object, ...]:
    # of two with one seed the one that went on from the other stands for both
    return outcome.variant, outcome.seed, outcome.fallback is None, outcome.fingerprint, outcome.status


def ranked(arms: Iterable[Arm]) -> list[Arm]:
    """The arms that can be ranked, lowest mean first; of equal means the baseline first, then by name."""
    return sorted((arm for arm in arms if not arm.why_not), key=lambda a: (a.mean, not a.is_baseline, a.name))


def pooled(arms: Iterable[Arm]) -> Pooled | None:
    """The pooled standard deviation over arms; None where no arm has two seeds."""
    arms = list(arms)
    degrees = sum(arm.n - 1 for arm in arms if arm.n)
    if degrees < 1:
        return None
    return Pooled(math.sqrt(math.fsum(arm.squares for arm in arms if arm.n) / degrees), degrees)


def summaries(arms: Sequence[Arm], order: Sequence[Arm]) -> list[ArmSummary]:
    """The table of a verdict: ranked arms in the order given, then the others by name."""
    ranks = {arm.name: index for index, arm in enumerate(order, start=1)}
    table = sorted(arms, key=lambda arm: (ranks.get(arm.name, len(arms) + 1), arm.name))
    return [
        ArmSummary(
            variant=arm.name,
            rank=ranks.get(arm.name),
            n=arm.n,
            mean=arm.mean if arm.n else None,
            sd=arm.sd if arm.n else None,
            values={str(seed): arm.values.get(seed) for seed in arm.statuses},
            statuses={str(seed): status for seed, status in arm.statuses.items()},
            why=arm.why_not,
        )
        for arm in table
    ]


def counts(arms: Iterable[Arm]) -> dict[str, int]:
    """Trials by status, missing ones included."""
    found: dict[str, int] = {}
    for arm in arms:
        for status in arm.statuses.values():
            found[status] = found.get(status, 0) + 1
    return dict(sorted(found.items()))


def _why_not(statuses: dict[int, str], values: dict[int, float], min_seeds: int) -> str:
    failed = [f"seed {seed} {status}" for seed, status in statuses.items() if status in FAILED]
    if failed:
        return ", ".join(failed).replace("_", " ")
    if len(values) >= min_seeds:
        return ""
    without = [f"seed {seed} {_gap(status)}" for seed, status in statuses.items() if seed not in values]
    return f"{len(values)} of at least {min_seeds} seeds have a value" + (f" ({', '.join(without)})" if without else "")


def _gap(status: str) -> str:
    return "has no finite value" if status == Status.COMPLETED else status.replace("_", " ")
