"""When a run crossed its target losses, and whether it is near one: pure functions of what was measured."""

from __future__ import annotations

from podium.trainer.curve import Curve, Point
from podium.trainer.result import Crossing
from podium.trainer.target_config import TargetRule


def first_under(points: Curve, loss: float) -> Point | None:
    """The first evaluation whose loss is under `loss`, or None."""
    return next((point for point in points if point.val_loss is not None and point.val_loss < loss), None)


def crossings(points: Curve, rule: TargetRule) -> list[Crossing]:
    """The first crossing of every loss of the rule, the highest first; null where there was none."""
    found = []
    for loss in rule.losses:
        point = first_under(points, loss)
        if point is None:
            found.append(Crossing(loss=loss))
        else:
            found.append(Crossing(loss=loss, step=point.step, tokens=point.tokens, seconds=point.train_seconds))
    return found


def is_near(points: Curve, train_loss: float | None, rule: TargetRule) -> bool:
    """Whether a loss that is still to be crossed is no more than `near` away."""
    to_cross = [loss for loss in rule.losses if first_under(points, loss) is None]
    known = [loss for loss in (points[-1].val_loss if points else None, train_loss) if loss is not None]
    return bool(to_cross and known) and min(known) - max(to_cross) <= rule.near
