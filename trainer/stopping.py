"""Rules that end a run early, as pure functions of curves.

A rule is a function of what was measured at which token count, not of when it became known: every rule walks along the
curve, uses only values up to the point it is at, and stops at the first point where it is met. So a decision, once
made, is never changed by a point that comes later, and a run that finished first is judged afterwards by the same
function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from podium.trainer.config import KillCriterion, KillRule, PatienceRule, RegressionRule, StopRules
from podium.trainer.curve import Curve, Point
from podium.trainer.result import Status
from podium.trainer.stop_checks import impossible_rules, meaning_of
from podium.trainer.target import first_under
from podium.trainer.target_config import TargetRule
from podium.trainer.units import format_count

__all__ = ["Kill", "Stop", "first_stop", "impossible_rules", "kill_point", "meaning_of", "perplexity_of"]

_UNITS = {"perplexity": "PPL", "loss": "nats", "gradient_norm": "×"}


@dataclass(frozen=True, slots=True)
class Kill:
    """Where a kill rule was met, and the sentence that says so with its numbers."""

    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the first of all rules was met."""

    kind: Literal["non_finite", "target", "kill", "regression", "patience"]
    tokens: int
    reason: str

    @property
    def status(self) -> Status:
        """How a run that this ended is reported."""
        named = {"non_finite": Status.DIVERGED, "target": Status.TARGET_REACHED}
        return named.get(self.kind, Status.KILLED)


def perplexity_of(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def kill_point(curve: Curve, reference: Curve, rule: KillRule) -> Kill | None:
    """The first look at which the run has been worse than the reference at every look over `span_tokens`, or None.

    Looks are the declared token counts, or all that both curves have. Each is judged once both curves have reached it,
    in order. The rule is met at a look of at least `min_tokens` when that look and all looks before it, back to one at
    least `span_tokens` earlier, were worse (looks before `min_tokens` count). A look at which a value that a criterion
    needs is missing on either side does not hold for that criterion: without evidence nothing is killed.

    For an arm with several seeds, pass the means of its and the baseline's curves (`curve.mean_curve`).
    """
    worse_since: int | None = None
    for tokens, own, other in _looks(curve, reference, rule):
        met = [text for criterion in rule.criteria if (text := _compare(own, other, criterion))]
        needed = 1 if rule.join == "any" else len(rule.criteria)
        if len(met) < needed:
            worse_since = None
            continue
        if worse_since is None:
            worse_since = tokens
        if tokens >= rule.min_tokens and tokens - worse_since >= rule.span_tokens:
            return Kill(
                tokens,
                f"worse than the reference at every look from {format_count(worse_since)} to {format_count(tokens)} "
                f"tokens; at the last: {'; '.join(met)}",
            )
    return None


def first_stop(points: Curve, reference: Curve | None, rules: StopRules) -> Stop | None:
    """The first point at which any rule that reads curves is met, or None.

    At one point a loss that is not finite comes first, then the target, kill, regression and patience. Without a
    reference the kill rule is not judged (yet). `timeout_seconds` is the training loop's.
    """
    stops = [_non_finite(points)]
    if rules.target is not None:
        stops.append(_target(points, rules.target))
    if rules.kill is not None and reference is not None:
        kill = kill_point(points, reference, rules.kill)
        stops.append(Stop("kill", kill.tokens, kill.reason) if kill else None)
    if rules.regression is not None:
        stops.append(_regression(points, rules.regression))
    if rules.patience is not None:
        stops.append(_patience(points, rules.patience))
    return min((stop for stop in stops if stop), key=lambda stop: stop.tokens, default=None)


def _looks(curve: Curve, reference: Curve, rule: KillRule) -> Iterator[tuple[int, Point | None, Point | None]]:
    if not curve or not reference:
        return
    own = {point.tokens: point for point in curve}
    others = {point.tokens: point for point in reference}
    reached = min(curve[-1].tokens, reference[-1].tokens)
    declared = own.keys() & others.keys() if rule.looks is None else rule.looks
    for tokens in sorted(set(declared)):
        if tokens <= reached:
            yield tokens, own.get(tokens), others.get(tokens)


def _compare(own: Point | None, other: Point | None, criterion: KillCriterion) -> str:
    """What to say when `own` is worse by the criterion; empty when it is not, or when that can't be known."""
    if own is None or other is None:
        return ""
    if criterion.metric == "gradient_norm":
        mine, theirs = own.gradient_norm, other.gradient_norm
    else:
        mine, theirs = own.val_loss, other.val_loss
    if mine is None or theirs is None:
        return ""
    if criterion.metric == "gradient_norm":
        worse = mine > 0 and mine >= criterion.limit * theirs
        return f"gradient norm {mine:.4g} against {theirs:.4g}, limit ×{criterion.limit:g}" if worse else ""
    if criterion.metric == "perplexity":
        mine, theirs = perplexity_of(mine), perplexity_of(theirs)
    worse = math.isfinite(theirs) and mine - theirs >= criterion.limit
    limit = f"{criterion.limit:.4g} {_UNITS[criterion.metric]}"
    return f"{criterion.metric} {mine:.4f} against {theirs:.4f}, limit +{limit}" if worse else ""


def _non_finite(points: Curve) -> Stop | None:
    for point in points:
        if point.val_loss is None or not math.isfinite(point.val_loss):
            return Stop(
                "non_finite", point.tokens, f"validation loss not finite at {format_count(point.tokens)} tokens"
            )
    return None


def _target(points: Curve, rule: TargetRule) -> Stop | None:
    point = first_under(points, rule.loss)
    if point is None:
        return None
    return Stop(
        "target",
        point.tokens,
        f"validation loss {point.val_loss:.4f} is under the target {rule.loss:g} after {point.step} steps",
    )


def _regression(points: Curve, rule: RegressionRule) -> Stop | None:
    best = math.inf
    for point in points:
        if point.val_loss is None:
            return None
        if point.tokens >= rule.min_tokens and point.val_loss - best >= rule.threshold:
            return Stop(
                "regression",
                point.tokens,
                f"validation loss {point.val_loss:.4f} at {format_count(point.tokens)} tokens is {rule.threshold:g} "
                f"nats or more above the run's own best {best:.4f}",
            )
        best = min(best, point.val_loss)
    return None


def _patience(points: Curve, rule: PatienceRule) -> Stop | None:
    best, waited = math.inf, 0
    for point in points:
        if point.val_loss is None:
            return None
        if point.val_loss < best - rule.min_delta:
            best, waited = point.val_loss, 0
        else:
            waited += 1
        if waited >= rule.evaluations and point.tokens >= rule.min_tokens:
            return Stop(
                "patience",
                point.tokens,
                f"validation loss not better than {best:.4f} by {rule.min_delta:g} nats for {waited} evaluations "
                f"in a row, at {format_count(point.tokens)} tokens",
            )
    return None
