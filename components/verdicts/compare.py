"""Two samples of final figures beside each other, or one beside a target: n, means, spreads, difference, tests.

Hypothesis tested: both have the same mean (two-sided), or the mean is at or above the target (one-sided). Welch's test,
since two runs need not have one variance; beside it the moderated t, by the variance pooled over both and over the
other arms of their stages, which is sharper with few seeds where variances are alike. Both assume roughly normal
figures. Descriptive: runs that were chosen after looking at them prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from podium.components.study.run import Run
from podium.components.verdicts.samples import Sample, read_sample
from podium.components.verdicts.stats import PooledVariance, against_target, interval, two_sided_p, welch_error
from podium.trainer.trial.errors import Problem, UserError
from podium.trainer.trial.result import Point, mean_curve

# A difference in loss as steps and seconds: how much sooner the better one's mean curve is where the other ends.
#
# Estimator: mean curves over seeds at the evaluations that all have, linear between two evaluations. Limits: curves
# of runs with a decaying rate cross a loss late, so a curve under way is not the curve of a shorter schedule; what is
# saved is of these runs, not of a schedule cut to fit.


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


_TOKEN_LOSSES = ("final_val_loss", "final_val_perplexity", "best_val_loss", "best_val_perplexity", "final_train_loss")
"""Figures a token: they compare only over one tokenizer."""


@dataclass(frozen=True)
class Moderated:
    """The t test by a variance pooled over arms."""

    t: float
    degrees_of_freedom: int
    p: float
    """Two-sided."""
    pooled_sd: float
    arms: int
    """Arms that the variance is pooled over."""


@dataclass(frozen=True)
class Comparison:
    """b against a. What needs two figures a side is None where there are fewer, or no spread at all."""

    a: Sample
    b: Sample
    difference: float
    """Mean of b minus mean of a: below 0, b is lower."""
    t: float | None
    degrees_of_freedom: float | None
    p: float | None
    """Two-sided."""
    interval: tuple[float, float] | None
    """Two-sided 95 % interval of the difference."""
    moderated: Moderated | None = None
    effect: Effect | None = None
    """The difference in steps and seconds, where both have curves."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, means and spreads included."""
        plain: dict[str, Any] = {
            "difference": self.difference,
            "t": self.t,
            "degrees_of_freedom": self.degrees_of_freedom,
            "p": self.p,
            "interval": self.interval,
            "moderated": asdict(self.moderated) if self.moderated is not None else None,
            "effect": asdict(self.effect) if self.effect is not None else None,
        }
        return plain | {"a": plain_sample(self.a), "b": plain_sample(self.b)}

    def __str__(self) -> str:
        """One sentence."""
        a, b = (f"{each.name} {each.mean:.4f}{_spread(each)}" for each in (self.a, self.b))
        test = "" if self.p is None else f", Welch t = {self.t:.2f}, p = {self.p:.3g}"
        return f"{b} against {a}: {self.difference:+.4f}{test}"


@dataclass(frozen=True)
class AgainstTarget:
    """One sample against a target: one-sided, mean < target."""

    sample: Sample
    target: float
    alpha: float
    sigma: float | None
    statistic: float | None
    """Student's t; with a known SD (target - mean) · sqrt(n), in the figures' unit, as the speedrun's rule has it."""
    z: float | None
    degrees_of_freedom: int | None
    p: float | None
    passed: bool
    """p < alpha."""
    interval: tuple[float, float] | None = field(default=None)
    """Two-sided 1 - 2·alpha interval of the mean: under the target as a whole just where the test passes."""

    def to_json(self) -> dict[str, Any]:
        """Plain data with `n mean std statistic p passed`."""
        sample = self.sample
        return {
            "name": sample.name,
            "n": len(sample.values),
            "excluded": sample.excluded,
            "mean": sample.mean,
            "std": sample.sd,
            "target": self.target,
            "difference": sample.mean - self.target,
            "test": "one-sided one-sample t" if self.sigma is None else "one-sided z by a known SD",
            "sigma": self.sigma,
            "alpha": self.alpha,
            "statistic": self.statistic,
            "z": self.z,
            "degrees_of_freedom": self.degrees_of_freedom,
            "p": self.p,
            "passed": self.passed,
            "interval": self.interval,
        }

    def __str__(self) -> str:
        """One sentence."""
        sample = self.sample
        said = "nothing to test with" if self.p is None else f"p = {self.p:.3g}"
        verdict = "passes" if self.passed else "does not pass"
        head = f"{sample.name} {sample.mean:.4f}{_spread(sample)} against the target {self.target:g}"
        return f"{head}: {sample.mean - self.target:+.4f}, {said}: {verdict} at alpha {self.alpha:g}"


def compare(
    a: Run | str | Sequence[float],
    b: Run | str | Sequence[float],
    *,
    metric: str = "final_val_loss",
    variant: str | None = None,
    column: str | None = None,
) -> Comparison:
    """Compare the final figures of two runs, or of two files, folders or lists of numbers.

    A run (or the URI of its folder, or of a store for its newest run) stands for one arm of its last stage that has
    results: `variant`, else the winner of that stage's verdict. What a file may be: `samples.read_sample`. Raises
    UserError for what holds no such figures, and for losses a token of two tokenizers or times of two device types.
    """
    first, second = (read_sample(each, metric=metric, variant=variant, column=column) for each in (a, b))
    _check_comparable(first, second, metric)
    difference = second.mean - first.mean
    moderated = _moderated(first, second)
    effect = effect_of(first, second) if metric.endswith("val_loss") else None
    sides = [PooledVariance.of([each.values]) for each in (second, first)]
    parts = [
        (own.variance / (own.degrees_of_freedom + 1), own.degrees_of_freedom)
        for own in sides
        if own.variance is not None
    ]
    welch = welch_error(parts) if len(parts) == 2 else None
    if welch is None:
        return Comparison(first, second, difference, None, None, None, None, moderated, effect)
    t, degrees = difference / welch.error, welch.degrees_of_freedom
    within = interval(difference, welch.error, degrees, 0.025)
    return Comparison(first, second, difference, t, degrees, two_sided_p(t, degrees), within, moderated, effect)


def against(
    source: Run | str | Sequence[float],
    target: float,
    *,
    sigma: float | None = None,
    alpha: float = 0.01,
    metric: str = "final_val_loss",
    variant: str | None = None,
    column: str | None = None,
) -> AgainstTarget:
    """Test one sample's mean against a target, by its own SD or by a known one."""
    sample = read_sample(source, metric=metric, variant=variant, column=column)
    test = against_target(sample.mean, sample.sd, len(sample.values), target, alpha=alpha, sigma=sigma)
    statistic = test.statistic
    if sigma is not None:
        statistic = (target - sample.mean) * math.sqrt(len(sample.values))
    return AgainstTarget(
        sample,
        target,
        alpha,
        sigma,
        statistic,
        None if sigma is None or test.statistic is None else -test.statistic,
        None if test.degrees_of_freedom is None else int(test.degrees_of_freedom),
        test.p,
        passed=test.p is not None and test.p < alpha,
        interval=None if test.upper is None else (2 * sample.mean - test.upper, test.upper),
    )


def plain_sample(sample: Sample) -> dict[str, Any]:
    """A sample as plain data; its curves stay where they are."""
    return {
        "name": sample.name,
        "n": len(sample.values),
        "excluded": sample.excluded,
        "mean": sample.mean,
        "sd": sample.sd,
        "values": list(sample.values),
    }


def _moderated(a: Sample, b: Sample) -> Moderated | None:
    groups = {id(each): each for each in (a.values, b.values, *a.beside, *b.beside) if len(each) > 1}
    pool = PooledVariance.of(groups.values())
    if not pool.sd:
        return None
    t = (b.mean - a.mean) / (pool.sd * math.sqrt(1 / len(a.values) + 1 / len(b.values)))
    return Moderated(t, pool.degrees_of_freedom, two_sided_p(t, pool.degrees_of_freedom), pool.sd, len(groups))


def _check_comparable(a: Sample, b: Sample, metric: str) -> None:
    if metric in _TOKEN_LOSSES and a.tokenizers and b.tokenizers and a.tokenizers != b.tokenizers:
        raise UserError(
            Problem("metric", f"{metric} is a loss a token, and {a.name} and {b.name} have different tokenizers or "
                              f"texts; compare final_bits_per_byte")
        )  # fmt: skip
    if metric.endswith("_seconds") and len(a.devices | b.devices) > 1:
        kinds = ", ".join(sorted(a.devices | b.devices))
        raise UserError(Problem("metric", f"times are compared only on one type of device, got {kinds}"))


def _spread(sample: Sample) -> str:
    left_out = f", {sample.excluded} left out" if sample.excluded else ""
    spread = f" ± {sample.sd:.4f}" if sample.sd is not None else ""
    return f"{spread} (n={len(sample.values)}{left_out})"
