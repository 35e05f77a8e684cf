"""Tables of effects: each level of an axis against the base config's, and each factor of a designed stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from podium.components.reporting.model import ReportData
from podium.components.reporting.table import Line, Table, number, text
from podium.components.reporting.to_target.contrasts import Contrast, Estimate, contrast
from podium.components.reporting.to_target.runs import TimedRun, compared_tokens, level_name
from podium.components.study.design import baseline
from podium.trainer.units import format_count


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
