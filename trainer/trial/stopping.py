"""Rules that end a run early, as pure functions of curves.

A rule is a function of what was measured at which token count, not of when it became known: every rule walks along the
curve, uses only values up to the point it is at, and stops at the first point where it is met. So a decision, once
made, is never changed by a point that comes later, and a run that finished first is judged afterwards by the same
function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.trial.errors import NotFoundError, StorageError
from podium.trainer.trial.result import (
    METRICS,
    Crossing,
    Curve,
    Point,
    Status,
    best_point,
    curve_of,
    mean_curve,
    perplexity_of,
    read_lines,
)
from podium.trainer.trial.section import Count, Seconds, Section, format_count
from podium.trainer.trial.storage import open_storage

# The stop rule of a run to a target, as a config.


class TargetRule(Section):
    """Stop at the first evaluation whose loss is under `loss`.

    A run that does all its steps, or runs out of time, without that has missed its target.
    """

    loss: float = Field(gt=0)
    """Validation loss in nats per token."""
    also: list[float] = []
    """Other losses whose first crossing is recorded. They stop nothing."""
    near: float = Field(default=0.25, ge=0)
    """Nats above a loss that is still to be crossed, at which evaluations become denser. The last evaluation or the
    last training loss says how far it is, whichever is lower."""
    near_every_steps: int | None = Field(default=5, gt=0)
    """Steps between evaluations there; null: no denser than elsewhere."""

    @property
    def losses(self) -> list[float]:
        """All that are recorded, the first to be crossed first."""
        return sorted({self.loss, *self.also}, reverse=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(loss <= 0 for loss in self.also):
            raise ValueError(f"also must be losses above 0, got {self.also}")
        return self


# The rules that end a run early, as configs; `podium.trainer.trial.stopping` applies them.


class KillCriterion(Section):
    """One comparison with the reference curve at equal tokens."""

    metric: Literal["perplexity", "loss", "gradient_norm"]
    threshold: float | None = Field(default=None, gt=0)
    """How much worse is too much: in perplexity, in nats (`loss`), or as a ratio to the reference (`gradient_norm`)."""
    sigmas: float | None = Field(default=None, gt=0)
    """For `loss`: the threshold as a multiple of `sigma`, so that it follows the noise."""
    sigma: float | None = Field(default=None, gt=0)
    """Standard deviation of the loss over seeds, in nats."""

    @property
    def limit(self) -> float:
        """The threshold in the metric's own unit."""
        if self.threshold is not None:
            return self.threshold
        assert self.sigmas is not None
        assert self.sigma is not None
        return self.sigmas * self.sigma

    @model_validator(mode="after")
    def _check(self) -> Self:
        scaled = self.sigmas is not None and self.sigma is not None
        if (self.threshold is None) == (not scaled) or (self.sigmas is None) != (self.sigma is None):
            raise ValueError("give either threshold, or sigmas and sigma together")
        if scaled and self.metric != "loss":
            raise ValueError(f"sigmas scale a threshold in nats, so metric must be 'loss', got {self.metric!r}")
        if self.metric == "gradient_norm" and self.limit <= 1:
            raise ValueError(f"a gradient_norm threshold is a ratio to the reference and must be > 1, got {self.limit}")
        return self


class KillRule(Section):
    """Stop a run that is worse than the reference at every look over a span of tokens (`stopping.kill_point`)."""

    criteria: list[KillCriterion] = Field(min_length=1)
    join: Literal["any", "all"] = "any"
    """Whether one criterion suffices at a look or all must hold."""
    span_tokens: Count = Field(gt=0)
    """The run must be worse at every look over this many tokens."""
    min_tokens: Count = Field(ge=0)
    """No kill before this many tokens."""
    looks: list[Count] | None = None
    """Token counts at which the rule is evaluated; every evaluation by default."""


class PatienceRule(Section):
    """Stop when the validation loss has not improved by `min_delta` nats for `evaluations` evaluations in a row."""

    evaluations: int = Field(default=5, gt=0)
    min_delta: float = Field(default=0.0, ge=0)
    min_tokens: Count = Field(default=0, ge=0)


class RegressionRule(Section):
    """Stop when the validation loss is `threshold` nats above the run's own best."""

    threshold: float = Field(gt=0)
    min_tokens: Count = Field(default=0, ge=0)


class CollapseRule(Section):
    """Stop when a layer sends more than `share` of its tokens to one expert, at `checks` looks in a row."""

    share: float = Field(default=0.6, gt=0, lt=1)
    checks: int = Field(default=3, gt=0)
    every_steps: int = Field(default=100, gt=0)
    """A look is over the tokens of so many steps."""


class StopRules(Section):
    """What ends a run early. A loss that is not finite always does."""

    target: TargetRule | None = None
    kill: KillRule | None = None
    patience: PatienceRule | None = None
    regression: RegressionRule | None = None
    collapse: CollapseRule | None = None
    """For a mixture of experts."""
    timeout_seconds: Seconds | None = Field(default=None, gt=0)
    """Training seconds after which the run stops (evaluation, compilation and checkpoints not counted)."""


# When a run crossed its target losses, and whether it is near one: pure functions of what was measured.


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


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ended, or what a stop rule makes of it: the one form of it until the result is written."""

    status: Status
    reason: str
    """One sentence, with its numbers."""
    tokens: int
    """The evaluation at this count is the final one. Earlier than the last where a rule was met before it was noticed:
    then what came after is not part of the result, so that it does not depend on when that was."""
    kill_tokens: int | None = None
    """The same, of a run that was killed."""
    rule: Literal["", "non_finite", "target", "kill", "regression", "patience"] = ""
    """The stop rule that reads curves and was met."""

    @classmethod
    def completed(cls, steps: int, tokens: int) -> Ending:
        """Every step was taken."""
        return cls(Status.COMPLETED, f"all {steps} steps done", tokens)

    @classmethod
    def killed(cls, tokens: int, reason: str, rule: Literal["", "kill", "regression", "patience"] = "") -> Ending:
        """The run was not worth going on with."""
        return cls(Status.KILLED, reason, tokens, tokens, rule)

    @classmethod
    def diverged(cls, step: int, tokens: int) -> Ending:
        """The training loss was not finite."""
        return cls(Status.DIVERGED, f"training loss not finite at step {step}", tokens)

    @classmethod
    def timed_out(cls, limit_seconds: float, tokens: int) -> Ending:
        """The training clock reached the limit."""
        return cls.killed(tokens, f"time-out: {limit_seconds:g} s of training were allowed")

    @classmethod
    def missed(cls, rule: TargetRule, how: str, points: Curve, tokens: int) -> Ending:
        """The run is over, `how` says why, and its target was not reached."""
        best = best_point(points)
        said = "no evaluation" if best is None else f"the best was {best.val_loss:.4f}"
        return cls(Status.MISSED_TARGET, f"target {rule.loss:g} missed: {how}; {said}", tokens)

    @classmethod
    def collapsed(cls, reason: str, tokens: int) -> Ending:
        """A mixture sent nearly everything to one expert."""
        return cls(Status.COLLAPSED, reason, tokens)

    @classmethod
    def out_of_memory(cls, tried: str, tokens: int) -> Ending:
        """Memory ran out with the batch that `tried` names."""
        return cls(Status.OUT_OF_MEMORY, f"out of memory with {tried}", tokens)


_UNITS = {"perplexity": "PPL", "loss": "nats", "gradient_norm": "×"}


def kill_point(curve: Curve, reference: Curve, rule: KillRule) -> Ending | None:
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
            return Ending.killed(
                tokens,
                f"worse than the reference at every look from {format_count(worse_since)} to {format_count(tokens)} "
                f"tokens; at the last: {'; '.join(met)}",
                "kill",
            )
    return None


def first_stop(points: Curve, reference: Curve | None, rules: StopRules) -> Ending | None:
    """The first point at which any rule that reads curves is met, or None.

    At one point a loss that is not finite comes first, then the target, kill, regression and patience. Without a
    reference the kill rule is not judged (yet). `timeout_seconds` is the training loop's.
    """
    stops = [_non_finite(points)]
    if rules.target is not None:
        stops.append(_target(points, rules.target))
    if rules.kill is not None and reference is not None:
        stops.append(kill_point(points, reference, rules.kill))
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


def _non_finite(points: Curve) -> Ending | None:
    for point in points:
        if point.val_loss is None or not math.isfinite(point.val_loss):
            reason = f"validation loss not finite at {format_count(point.tokens)} tokens"
            return Ending(Status.DIVERGED, reason, point.tokens, rule="non_finite")
    return None


def _target(points: Curve, rule: TargetRule) -> Ending | None:
    point = first_under(points, rule.loss)
    if point is None:
        return None
    reason = f"validation loss {point.val_loss:.4f} is under the target {rule.loss:g} after {point.step} steps"
    return Ending(Status.TARGET_REACHED, reason, point.tokens, rule="target")


def _regression(points: Curve, rule: RegressionRule) -> Ending | None:
    best = math.inf
    for point in points:
        if point.val_loss is None:
            return None
        if point.tokens >= rule.min_tokens and point.val_loss - best >= rule.threshold:
            return Ending.killed(
                point.tokens,
                f"validation loss {point.val_loss:.4f} at {format_count(point.tokens)} tokens is {rule.threshold:g} "
                f"nats or more above the run's own best {best:.4f}",
                "regression",
            )
        best = min(best, point.val_loss)
    return None


def _patience(points: Curve, rule: PatienceRule) -> Ending | None:
    best, waited = math.inf, 0
    for point in points:
        if point.val_loss is None:
            return None
        if point.val_loss < best - rule.min_delta:
            best, waited = point.val_loss, 0
        else:
            waited += 1
        if waited >= rule.evaluations and point.tokens >= rule.min_tokens:
            return Ending.killed(
                point.tokens,
                f"validation loss not better than {best:.4f} by {rule.min_delta:g} nats for {waited} evaluations "
                f"in a row, at {format_count(point.tokens)} tokens",
                "patience",
            )
    return None


# The reference run's curve, as far as it is known by now.


class ReferenceCurve:
    """The mean curve of some runs, read from their folders each time until it is complete.

    A run that has not started, or can't be read for the moment, delays what depends on the curve and nothing else.
    """

    def __init__(self, uris: Sequence[str], last_tokens: int) -> None:
        """`uris` are the runs' folders; a curve that reaches `last_tokens` is not read again."""
        self._folders = [open_storage(uri) for uri in uris]
        self._last_tokens = last_tokens
        self._known: Curve | None = None

    def read(self) -> Curve | None:
        """The mean of the curves at the token counts that all have; None while one of them is missing."""
        if not self._folders:
            return None
        if self._known and self._known[-1].tokens >= self._last_tokens:
            return self._known
        try:
            self._known = mean_curve([curve_of(read_lines(folder.read_text(METRICS))) for folder in self._folders])
        except NotFoundError:
            return None
        except StorageError as error:
            print(f"reference curve not read now: {error}", flush=True)
        return self._known
