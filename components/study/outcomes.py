"""From a trial's result to what a verdict needs of it."""

from __future__ import annotations

import math

from podium.components.study.promotion import Metric
from podium.components.verdicts.verdict import TrialOutcome
from podium.trainer.result import Status, TrialResult

RANKED = (Status.COMPLETED, Status.TARGET_REACHED, Status.MISSED_TARGET)
"""Ends with a figure at the declared last step or target. A run that ended otherwise has none that compares."""


def outcome_of(
    variant: str,
    result: TrialResult,
    metric: Metric,
    tokenizer: str | None,
    reused_from: str | None = None,
    fallback: str | None = None,
) -> TrialOutcome:
    """A result as a verdict reads it. The value is None where the run did not end as planned, or it is not finite."""
    value = getattr(result, metric) if result.status in RANKED else None
    return TrialOutcome(
        variant=variant,
        seed=result.seed,
        fingerprint=result.fingerprint or "",
        status=result.status,
        value=value if value is not None and math.isfinite(value) else None,
        final_val_loss=finite(result.final_val_loss),
        tokens=result.tokens,
        device=result.versions.device if result.versions else None,
        tokenizer=tokenizer,
        cost_usd=result.cost_usd,
        time_to_target_seconds=finite(result.time_to_target_seconds),
        training_seconds=finite(result.training_seconds),
        steps=result.steps,
        targets={f"{crossing.loss:g}": finite(crossing.seconds) for crossing in result.targets},
        fallback=fallback,
        reused_from=reused_from,
    )


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None
