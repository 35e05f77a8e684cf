"""Two samples of final figures beside each other: n, means, spreads, the difference and Welch's t test.

Hypothesis tested: both have the same mean. Welch's test, since two runs need not have one variance; it assumes
roughly normal figures. Descriptive: runs that were chosen after looking at them prove nothing.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from podium.components.study.run import Run
from podium.trainer.errors import Problem, UserError
from podium.trainer.storage import open_storage, split_uri


@dataclass(frozen=True)
class Sample:
    """Figures of one arm."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one figure."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


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

    def to_json(self) -> dict[str, Any]:
        """Plain data, means and spreads included."""
        plain = asdict(self)
        for side, sample in (("a", self.a), ("b", self.b)):
            plain[side] |= {"n": len(sample.values), "mean": sample.mean, "sd": sample.sd}
        return plain

    def __str__(self) -> str:
        """One sentence."""
        a, b = (f"{each.name} {each.mean:.4f}{_spread(each)}" for each in (self.a, self.b))
        test = "" if self.p is None else f", Welch t = {self.t:.2f}, p = {self.p:.3g}"
        return f"{b} against {a}: {self.difference:+.4f}{test}"


def compare(
    a: Run | str | Sequence[float],
    b: Run | str | Sequence[float],
    *,
    metric: str = "final_val_loss",
    variant: str | None = None,
) -> Comparison:
    """Compare the final figures of two runs, or of two files or lists of numbers.

    A run (or the URI of its folder, or of a store for its newest run) stands for one arm of its last stage that has
    results: `variant`, else the winner of that stage's verdict. A file is a JSON list or one number a line. Raises
    UserError for what holds no such figures.
    """
    first, second = (_sample(each, metric, variant) for each in (a, b))
    difference = second.mean - first.mean
    if first.sd is None or second.sd is None or first.sd == second.sd == 0:
        return Comparison(first, second, difference, None, None, None, None)
    from scipy import stats  # a quarter of a second that a study without comparisons does not need

    found = stats.ttest_ind(second.values, first.values, equal_var=False)
    low, high = found.confidence_interval(0.95)
    return Comparison(
        first,
        second,
        difference,
        float(found.statistic),
        float(found.df),
        float(found.pvalue),
        (float(low), float(high)),
    )


def _sample(source: Run | str | Sequence[float], metric: str, variant: str | None) -> Sample:
    if isinstance(source, Run):
        return _of_run(source, metric, variant)
    if not isinstance(source, str):
        return _checked("values", source)
    if Path(source).is_file():
        folder, name = split_uri(source)
        return _checked(source, _numbers(open_storage(folder).read_text(name), source))
    return _of_run(Run.open(source), metric, variant)


def _of_run(run: Run, metric: str, variant: str | None) -> Sample:
    for stage in reversed(run.stages):
        verdict = run.verdict(stage)
        name = variant or (verdict.winner if verdict is not None else None)
        trials = [trial for trial in run.trials(stage) if trial.variant.name == name]
        try:
            found = [getattr(result, metric) for trial in trials if (result := run.result(trial.key)) is not None]
        except AttributeError:
            raise UserError(Problem("metric", f"no result has {metric!r}")) from None
        if any(value is not None for value in found):
            return _checked(f"{run.id}/{stage}/{name}", [value for value in found if value is not None])
    wanted = f"of variant {variant!r}" if variant else "of a winner"
    raise UserError(f"run {run.id} has no {metric} {wanted}")


def _numbers(text: str, source: str) -> list[float]:
    try:
        parsed = json.loads(text) if text.lstrip().startswith("[") else [float(line) for line in text.split()]
        return [float(value) for value in parsed]
    except (ValueError, TypeError):
        raise UserError(Problem(source, "must be a JSON list of numbers, or one number a line")) from None


def _checked(name: str, values: Sequence[float]) -> Sample:
    if not values or not all(math.isfinite(value) for value in values):
        raise UserError(Problem(name, f"must be at least one finite number, got {list(values)!r}"))
    return Sample(name, tuple(float(value) for value in values))


def _spread(sample: Sample) -> str:
    return f" ± {sample.sd:.4f} (n={len(sample.values)})" if sample.sd is not None else " (n=1)"
