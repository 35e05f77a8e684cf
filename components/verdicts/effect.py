"""A difference in loss as steps and seconds: how much sooner the better one's mean curve is where the other ends.

Estimator: mean curves over seeds at the evaluations that all have, linear between two evaluations. Limits: curves of
runs with a decaying rate cross a loss late, so a curve under way is not the curve of a shorter schedule; what is saved
is of these runs, not of a schedule cut to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from podium.components.verdicts.samples import Sample
from podium.trainer.curve import Point, mean_curve


@dataclass(frozen=True)
class Effect:
    """Where the better of two mean curves reaches the other's last loss."""

    better: str
    loss: float
    """The other's loss at its last evaluation, mean over seeds."""
    steps: float
    """Step at which the better one has it."""
    steps_saved: float
    """The other's last step minus that: below 0 where the better one only gets there later."""
    seconds: float | None
    seconds_saved: float | None
    """By the training clock; None where it was not measured, or on two device types."""


def effect_of(a: Sample, b: Sample) -> Effect | None:
    """None where a side has no curves, or where neither reaches the other's last loss."""
    first, second = (_mean(each.curves) for each in (a, b))
    if not first or not second or first[-1].val_loss is None or second[-1].val_loss is None:
        return None
    b_is_better = second[-1].val_loss <= first[-1].val_loss
    better, fast, slow = (b, second, first) if b_is_better else (a, first, second)
    mark = slow[-1].val_loss
    assert mark is not None
    found = _crossing(fast, mark)
    if found is None:
        return None
    steps, seconds = found
    same_device = len(a.devices | b.devices) <= 1
    end = slow[-1].train_seconds
    saved = end - seconds if seconds is not None and end is not None and same_device else None
    return Effect(better.name, mark, steps, slow[-1].step - steps, seconds if same_device else None, saved)


def _mean(curves: Sequence[Sequence[Point]]) -> list[Point]:
    return mean_curve(curves) if curves and all(curves) else []


def _crossing(curve: list[Point], mark: float) -> tuple[float, float | None] | None:
    """Step and seconds at which the curve first is at or under the mark."""
    if curve[0].val_loss is not None and curve[0].val_loss <= mark:
        return float(curve[0].step), curve[0].train_seconds
    for before, after in pairwise(curve):
        if before.val_loss is None or after.val_loss is None or after.val_loss > mark:
            continue
        share = (before.val_loss - mark) / (before.val_loss - after.val_loss)
        seconds = None
        if before.train_seconds is not None and after.train_seconds is not None:
            seconds = before.train_seconds + share * (after.train_seconds - before.train_seconds)
        return before.step + share * (after.step - before.step), seconds
    return None
