"""Learning rate by step: linear warm-up, then the named decay. Pure functions, without torch."""

from __future__ import annotations

import math

from podium.trainer.config import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of optimizer step `step` (1 … steps).

    The warm-up takes `round(warmup_fraction × steps)` steps and ends on the peak; the last step has
    `final_fraction × peak` (cosine: Loshchilov & Hutter, 2017). A warm-down ends one step later: with `final_fraction`
    0 the last step still has `peak / warmdown_steps`.
    """
    warmup = round(schedule.warmup_fraction * steps)
    if step <= warmup:
        return peak * step / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "warmdown":
        fraction = schedule.warmdown_fraction
        length = schedule.warmdown_steps if fraction is None else round(fraction * steps)
        assert length is not None
        # modded-nanogpt's records count from 0: the first step of the decay still has the peak
        left = min(1.0, (steps - step + 1) / max(1, length))
        return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * left)
    progress = (step - warmup) / max(1, steps - warmup)
    floor = schedule.final_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
