"""Learning rate by step: linear warm-up, then the named decay. Pure functions, without torch."""

from __future__ import annotations

import math

from podium.trainer.config import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of optimizer step `step` (1 … steps).

    The warm-up takes `round(warmup_fraction × steps)` steps and ends on the peak; the last step has
    `final_fraction × peak` (cosine: Loshchilov & Hutter, 2017).
    """
    warmup = round(schedule.warmup_fraction * steps)
    if step <= warmup:
        return peak * step / warmup
    if schedule.name == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    floor = schedule.final_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
