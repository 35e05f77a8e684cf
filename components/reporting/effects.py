"""Tables of effects: each level of an axis against the base config's, and each factor of a designed stage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.reporting.table import Line, Table, number, text
from podium.components.study.design import baseline, value_name
from podium.components.study.fields import value_at
from podium.components.study.schema import Study
from podium.components.study.verdict import mean_of
from podium.components.verdicts.arms import FAILED
from podium.components.verdicts.stats import PooledVariance, interval
from podium.trainer.trial.result import Curve, TrialResult
from podium.trainer.trial.section import format_count

# Trials with a time. A trial that missed its target counts with the time it trained, a lower bound. One that diverged
# or ran out of memory would never have reached it, so it counts with the longest time of its stage.


@dataclass(frozen=True)
class TimedRun:
    """One trial, or the one that went on from it."""

    stage: str
    name: str
    variant: str
    group: str | None
    values: tuple[Any, ...]
    """Of the study's axes, in their order."""
    seconds: float
    reached: bool
    """False: it would have taken longer."""
    steps: int
    """Up to the target, or all that were done."""
    loss: float | None
    """Validation loss at the tokens that all of the stage compare at; None where the run does not span them."""


def target_of(stage: StageData) -> float | None:
    """The loss to which the stage's times are: that of its verdict, which a fallback may have changed."""
    if stage.verdict is not None and stage.verdict.test.get("target_loss") is not None:
        return float(stage.verdict.test["target_loss"])
    return None if stage.stage.stop.target is None else stage.stage.stop.target.loss


def timed_runs(data: ReportData) -> list[TimedRun]:
    """Every trial that says something of its time."""
    return [run for stage in data.stages for run in _of_stage(data.study, stage)]


def compared_tokens(stage: StageData) -> int | None:
    """Where losses of the stage's trials are compared: the latest of their first evaluations."""
    firsts = [trial.curve[0].tokens for trial in stage.trials if trial.curve]
    return max(firsts, default=None)


def loss_at(curve: Curve, tokens: int) -> float | None:
    """The validation loss at so many tokens, linear between two evaluations; None outside of the curve."""
    for before, after in itertools.pairwise(curve):
        if before.tokens <= tokens <= after.tokens and before.val_loss is not None and after.val_loss is not None:
            share = (tokens - before.tokens) / (after.tokens - before.tokens)
            return before.val_loss + share * (after.val_loss - before.val_loss)
    exact = [point.val_loss for point in curve if point.tokens == tokens]
    return exact[0] if exact else None


def level_name(study: Study, axis: str, value: Any) -> str:
    """A level as tables say it: its name where the axis gives one, else the value."""
    declared = study.axes[axis]
    if declared.names is not None and value in declared.values:
        return value_name(axis, declared, declared.values.index(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_stage(study: Study, stage: StageData) -> list[TimedRun]:
    target, tokens = target_of(stage), compared_tokens(stage)
    latest: dict[tuple[str, int], TrialData] = {}
    for trial in stage.trials:
        if trial.result is not None and trial.result.training_seconds is not None:
            latest[trial.variant.name, trial.key.seed] = trial  # one that went on comes after the one it went on from
    horizon = max((t.result.training_seconds or 0.0 for t in latest.values() if t.result), default=0.0)
    found = []
    for trial in latest.values():
        result, config = trial.result, trial.config
        assert result is not None
        if config is None or target is None:
            continue
        seconds, steps, reached = _time(result, target, horizon)
        if seconds <= 0:
            continue
        found.append(
            TimedRun(
                stage=stage.name,
                name=trial.key.name,
                variant=trial.variant.name,
                group=trial.group,
                values=tuple(value_at(config, axis.field) for axis in study.axes.values()),
                seconds=seconds,
                reached=reached,
                steps=steps,
                loss=None if tokens is None else loss_at(trial.curve, tokens),
            )
        )
    return found


def _time(result: TrialResult, target: float, horizon: float) -> tuple[float, int, bool]:
    for crossing in result.targets:
        if crossing.loss == target and crossing.seconds is not None and crossing.step is not None:
            return crossing.seconds, crossing.step, True
    assert result.training_seconds is not None
    return (horizon if result.status in FAILED else result.training_seconds), result.steps, False


def by_cell(runs: Sequence[TimedRun]) -> dict[tuple[str, tuple[Any, ...]], list[TimedRun]]:
    """Replicates together: runs of one stage with the same value of every axis."""
    cells: dict[tuple[str, tuple[Any, ...]], list[TimedRun]] = {}
    for run in runs:
        cells.setdefault((run.stage, run.values), []).append(run)
    return cells


# Matched comparisons. Two levels are compared within pairs: configurations of one stage that differ in nothing else.
# Times and steps are compared as ratios (differences of logarithms), losses as differences; a pair's cells are means
# over their replicates. The noise is the SD over replicates, pooled over all cells; a pair's error follows from it and
# from how many replicates its cells have, and the interval is Student's with the noise's degrees of freedom. Limits:
# the effect is taken to be the same in every pair; a miss counts with the time it trained, so where one takes part the
# effect is a bound, and the interval does not cover that.

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """An effect: of logarithms for times and steps, in nats for losses."""

    value: float
    error: float | None
    """Standard error; None without replicates."""
    degrees: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two-sided, at 95 %."""
        if self.error is None:
            return None
        return interval(self.value, self.error, self.degrees, (1 - LEVEL) / 2)

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out that there is no effect."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Contrast:
    """One level against another."""

    pairs: int
    missed_before: int
    missed_after: int
    """Runs at either level that did not reach the target: they would have taken longer."""
    seconds: Estimate
    steps: Estimate
    step_seconds: Estimate
    """Seconds a step."""
    loss: Estimate | None
    """At equal tokens; None where no pair has both losses."""

    @property
    def is_faster(self) -> bool:
        """Whether the new level is shown to be faster, whatever the misses hide."""
        return self.seconds.sure and self.seconds.value < 0 and not self.missed_after

    @property
    def is_slower(self) -> bool:
        """Whether it is shown to be slower."""
        return self.seconds.sure and self.seconds.value > 0 and not self.missed_before

    @property
    def bound(self) -> str:
        """What the ratio of times is: itself, at least, at most, or neither."""
        return {(False, False): "", (False, True): "≥ ", (True, False): "≤ ", (True, True): "≈ "}[
            bool(self.missed_before), bool(self.missed_after)
        ]


Measure = Callable[[TimedRun], float | None]
MEASURES: dict[str, Measure] = {
    "seconds": lambda run: math.log(run.seconds),
    "steps": lambda run: math.log(max(run.steps, 1)),
    "step_seconds": lambda run: math.log(run.seconds / max(run.steps, 1)),
    "loss": lambda run: run.loss,
}


def noise_of(runs: Sequence[TimedRun], measure: Measure) -> PooledVariance:
    """The variance over replicates, pooled over cells."""
    cells = by_cell([run for run in runs if run.reached]).values()
    return PooledVariance.of([value for run in cell if (value := measure(run)) is not None] for cell in cells)


def contrast(runs: Sequence[TimedRun], axes: Sequence[str], change: Mapping[str, tuple[Any, Any]]) -> Contrast | None:
    """The effect of `change`, axis → (from, to), over all pairs; None without a pair. `axes` are the study's."""
    places = {axes.index(axis): levels for axis, levels in change.items()}
    cells = by_cell(runs)
    pairs = []
    for (stage, values), cell in cells.items():
        if all(values[place] == levels[0] for place, levels in places.items()):
            other = tuple(places[i][1] if i in places else value for i, value in enumerate(values))
            if (stage, other) in cells:
                pairs.append((cell, cells[stage, other]))
    if not pairs:
        return None
    found = {name: _estimate(runs, pairs, measure) for name, measure in MEASURES.items()}
    seconds, steps, step_seconds = found["seconds"], found["steps"], found["step_seconds"]
    assert seconds is not None
    assert steps is not None
    assert step_seconds is not None
    before, after = (sum(not run.reached for pair in pairs for run in pair[side]) for side in (0, 1))
    return Contrast(len(pairs), before, after, seconds, steps, step_seconds, found["loss"])


def _estimate(
    runs: Sequence[TimedRun], pairs: Sequence[tuple[list[TimedRun], list[TimedRun]]], measure: Measure
) -> Estimate | None:
    differences, weights = [], []
    for before, after in pairs:
        a, b = ([value for run in cell if (value := measure(run)) is not None] for cell in (before, after))
        if a and b:
            differences.append(mean_of(b) - mean_of(a))
            weights.append(1 / len(a) + 1 / len(b))
    if not differences:
        return None
    noise = noise_of(runs, measure)
    value = mean_of(differences)
    if noise.sd is None:
        return Estimate(value, None, 0)
    return Estimate(value, noise.sd * math.sqrt(math.fsum(weights)) / len(differences), noise.degrees_of_freedom)


def effects_table(data: ReportData, runs: Sequence[TimedRun]) -> Table:
    """Each level that was tried beside the base config's one, everything else equal."""
    study, axes = data.study, list(data.study.axes)
    base = baseline(study).axis_values
    lines = []
    for place, axis in enumerate(axes):
        for level in sorted({run.values[place] for run in runs}, key=lambda value: (str(type(value)), value)):
            if level == base[axis]:
                continue
            found = contrast(runs, axes, {axis: (base[axis], level)})
            if found is not None:
                lines.append(_line(study.axes[axis].title or axis, data, axis, base[axis], level, found))
    tokens = compared_tokens(data.stages[0])
    where = "" if tokens is None else f" The loss is compared at {format_count(tokens)} tokens."
    note = (
        "Pairs differ in nothing else; ratios below 1 are faster. Intervals are at 95 %, by the noise of replicates; "
        f"≥ and ≤ mark bounds, where a run missed the target, ≈ where some did at both levels.{where}"
    )
    columns = (
        text("parameter"), text("level"), text("against"), number("pairs"), number("time"), number("95 %"),
        number("steps"), number("time a step"), number("loss"), number("95 % of loss"),
    )  # fmt: skip
    return Table("effects", "Effect of each parameter on time and quality", columns, tuple(lines), note)


def ratio(estimate: Estimate) -> str:
    """A ratio of times or steps."""
    return f"{math.exp(estimate.value):.3f}×"


def ratio_interval(estimate: Estimate) -> str:
    """Its interval; empty without replicates."""
    if estimate.interval is None:
        return ""
    return f"{math.exp(estimate.interval[0]):.3f} to {math.exp(estimate.interval[1]):.3f}"


def _line(title: str, data: ReportData, axis: str, base: Any, level: Any, found: Contrast) -> Line:
    loss = interval = ""
    if found.loss is not None:
        loss = f"{found.loss.value:+.4f}".replace("-", "−")
        if found.loss.interval is not None:
            interval = " to ".join(f"{end:+.4f}".replace("-", "−") for end in found.loss.interval)
    return Line(
        (
            title,
            level_name(data.study, axis, level),
            level_name(data.study, axis, base),
            str(found.pairs),
            f"{found.bound}{ratio(found.seconds)}",
            ratio_interval(found.seconds),
            ratio(found.steps),
            ratio(found.step_seconds),
            loss,
            interval,
        )
    )


def design_table(data: ReportData, runs: Sequence[TimedRun]) -> Table:
    """Linear effects over a designed stage, from the lowest level of a factor to the highest, by least squares."""
    name = "design-effects"
    before = next((stage for stage in data.decided if stage.verdict and "levels" in stage.verdict.test), None)
    if before is None or before is data.stages[-1]:
        return Table(name, "", (), ())
    assert before.verdict is not None
    stage = data.stages[list(data.stages).index(before) + 1]
    fields: dict[str, list[Any]] = before.verdict.test["levels"]
    axes = {axis.field: (place, axis.title or key) for place, (key, axis) in enumerate(data.study.axes.items())}
    own = [run for run in runs if run.stage == stage.name]
    factors = [(field, *axes[field]) for field in fields if field in axes]
    fitted = _fit(own, [place for _, place, _ in factors]) if factors else None
    if fitted is None:
        return Table(name, "", (), ())
    lines = []
    for (field, place, title), estimate in zip(factors, fitted, strict=True):
        axis = list(data.study.axes)[place]
        ends = [level_name(data.study, axis, value) for value in (fields[field][0], fields[field][-1])]
        lines.append(Line((title, ends[0], ends[1], ratio(estimate), ratio_interval(estimate))))
    columns = (text("parameter"), text("from"), text("to"), number("time"), number("95 %"))
    missed = sum(not run.reached for run in own)
    note = f"Least squares on log time over {len(own)} trials of {stage.name}, main effects alone" + (
        f"; {missed} misses count with the time they trained." if missed else "."
    )
    return Table(name, f"Main effects over the design of {stage.name}", columns, tuple(lines), note)


def _fit(runs: Sequence[TimedRun], places: Sequence[int]) -> list[Estimate] | None:
    """Effect of each factor over its whole range; None where there are too few trials."""
    import numpy as np

    columns, ranges = [], []
    for place in places:
        values = [run.values[place] for run in runs]
        kinds = sorted({repr(value) for value in values})
        plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        coded = [float(value) if plain else float(kinds.index(repr(value))) for value in values]
        columns.append(coded)
        ranges.append(max(coded) - min(coded) if coded else 0.0)
    if len(runs) <= len(places) + 1 or not all(ranges):
        return None
    matrix = np.column_stack([np.ones(len(runs)), *columns])
    times = np.log([run.seconds for run in runs])
    solution, _, rank, _ = np.linalg.lstsq(matrix, times, rcond=None)
    degrees = len(runs) - matrix.shape[1]
    if rank < matrix.shape[1]:
        return None
    variance = float(np.square(times - matrix @ solution).sum()) / degrees
    errors = np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix)) * variance)
    return [
        Estimate(float(solution[i + 1]) * span, float(errors[i + 1]) * span, degrees) for i, span in enumerate(ranges)
    ]
