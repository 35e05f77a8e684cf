"""The study's four questions, answered from its data with what they leave open.

Does Polar Express's quality pay for its speed? Do variance reduction and cautious decay together win by the clock, or
only by steps? Which learning rate is fastest? How lazy can the projection be? A question of which the study varies
nothing is left out. The figures are those of `contrasts.py`; a difference counts as shown where its 95 % interval
leaves out none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.reporting.model import ReportData
from podium.components.reporting.to_target.contrasts import Contrast, Estimate, contrast
from podium.components.reporting.to_target.effects import ratio, ratio_interval
from podium.components.reporting.to_target.runs import TimedRun, level_name
from podium.components.study.schema import Study

ORTHOGONALIZATION = "optimizer.orthogonalization"
VARIANCE, CAUTIOUS = "optimizer.variance_reduction", "optimizer.cautious_weight_decay"
RATE, LAZY = "optimizer.learning_rate", "model.projection_every"


@dataclass(frozen=True)
class Answer:
    """A question and what the data say."""

    question: str
    answer: str


def answers(data: ReportData, runs: Sequence[TimedRun]) -> list[Answer]:
    """Every question of which there are trials, answered."""
    axes = {axis.field: name for name, axis in data.study.axes.items()}
    found = []
    if ORTHOGONALIZATION in axes:
        change: dict[str, tuple[Any, Any]] = {axes[ORTHOGONALIZATION]: ("newton_schulz", "polar_express")}
        said = _changed(data.study, runs, change, "Polar Express")
        found.append(Answer("Does Polar Express's quality pay for its speed?", said))
    if VARIANCE in axes and CAUTIOUS in axes:
        change = {axes[VARIANCE]: (False, True), axes[CAUTIOUS]: (False, True)}
        said = _changed(data.study, runs, change, "VR with CWD")
        found.append(Answer("Do variance reduction and cautious decay win by the clock, or only by steps?", said))
    if RATE in axes:
        found.append(Answer("Which learning rate is fastest?", _fastest(data.study, runs, axes[RATE])))
    if LAZY in axes:
        found.append(Answer("How lazy can the projection be?", _laziest(data.study, runs, axes[LAZY])))
    return found


def _changed(study: Study, runs: Sequence[TimedRun], change: dict[str, tuple[Any, Any]], what: str) -> str:
    found = contrast(runs, list(study.axes), change)
    if found is None:
        return "Not answered: no two trials differ in this alone."
    return f"{_verdict(found, what)} {_figures(found)}"


def _verdict(found: Contrast, what: str) -> str:
    faster, fewer = found.seconds.value < 0, found.steps.value < 0
    if found.is_faster:
        return f"{what} pays: it is faster by the clock{' and needs fewer steps' if fewer else ''}."
    if found.is_slower:
        saved = "it saves steps, but they cost more than they save" if fewer else "it saves neither steps nor time"
        return f"{what} does not pay: {saved}."
    if found.seconds.error is None:
        looks = "faster" if faster else "slower"
        return f"{what} looks {looks}, but nothing reached the target twice, so the noise is unknown."
    if found.missed_before or found.missed_after:
        return f"Not shown: too many runs missed the target to tell what {what} does."
    by_steps = " Fewer steps are shown, so it wins by steps only." if found.steps.sure and fewer else ""
    return f"Not shown: the difference that {what} makes by the clock is within the noise.{by_steps}"


def _figures(found: Contrast) -> str:
    interval = ratio_interval(found.seconds)
    told = f" (95 %: {interval})" if interval else ""
    misses = found.missed_before + found.missed_after
    bound = f"; {misses} {'run' if misses == 1 else 'runs'} missed the target" if misses else ""
    loss = "" if found.loss is None else f", {found.loss.value:+.4f} nats at equal tokens".replace("-", "−")
    return (
        f"Time {found.bound}{ratio(found.seconds)}{told}, steps {ratio(found.steps)}, "
        f"time a step {ratio(found.step_seconds)}{loss}; {_pairs(found.pairs)}{bound}."
    )


def _levels(study: Study, runs: Sequence[TimedRun], axis: str) -> list[tuple[Any, Contrast | None]]:
    """Each level with its contrast to the level that compares with most others, fastest first; that one has none."""
    axes, place = list(study.axes), list(study.axes).index(axis)
    values = sorted({run.values[place] for run in runs})
    tables = {}
    for base in values:
        found = {value: contrast(runs, axes, {axis: (base, value)}) for value in values if value != base}
        tables[base] = {value: each for value, each in found.items() if each is not None}
    base = max(values, key=lambda value: (len(tables[value]), sum(c.pairs for c in tables[value].values())))
    levels: list[tuple[Any, Contrast | None]] = [(base, None), *tables[base].items()]
    return sorted(levels, key=lambda level: 0.0 if level[1] is None else level[1].seconds.value)


def _between(level: Contrast | None, best: Contrast | None) -> Estimate:
    """The log time of a level over that of the best, both known against the same third."""
    value = (0.0 if level is None else level.seconds.value) - (0.0 if best is None else best.seconds.value)
    known = [each.seconds for each in (level, best) if each is not None]
    errors = [each.error for each in known if each.error is not None]
    if not known or len(errors) < len(known):
        return Estimate(value, None, 0)
    return Estimate(value, math.sqrt(math.fsum(error**2 for error in errors)), min(each.degrees for each in known))


def _fastest(study: Study, runs: Sequence[TimedRun], axis: str) -> str:
    if len({run.values[list(study.axes).index(axis)] for run in runs}) < 2:
        return "Not answered: one value was tried."
    levels = _levels(study, runs, axis)
    if len(levels) < 2:
        return "Not answered: no two trials differ in this alone."
    (best, first), *others = levels
    told = [f"{level_name(study, axis, value)} takes {ratio(_between(each, first))}" for value, each in others[:4]]
    open_ = [level_name(study, axis, value) for value, each in others if not _slower(each, first)]
    said = f"{level_name(study, axis, best)} in matched comparisons: {', '.join(told)} the time."
    if any(_between(each, first).error is None for _, each in others):
        return f"{said} Nothing reached the target twice, so the noise is unknown."
    if open_:
        return f"{said} Within the noise of it: {', '.join(open_)}."
    return f"{said} All others are slower beyond the noise."


def _laziest(study: Study, runs: Sequence[TimedRun], axis: str) -> str:
    if len({run.values[list(study.axes).index(axis)] for run in runs}) < 2:
        return "Not answered: one value was tried."
    levels = _levels(study, runs, axis)
    if len(levels) < 2:
        return "Not answered: no two trials differ in this alone."
    (best, first), *_ = levels
    apart = {value: _between(each, first) for value, each in levels}
    shown = ", ".join(
        f"every {level_name(study, axis, value)} {ratio(estimate)}" + _told(estimate)
        for value, estimate in sorted(apart.items())
    )
    if any(estimate.error is None for value, estimate in apart.items() if value != best):
        return f"Fastest every {best} steps; nothing reached the target twice, so the noise is unknown. Time: {shown}."
    fine = [value for value, each in levels if not _slower(each, first)]
    return f"Up to every {max(fine)} steps nothing slower than the fastest (every {best}) is shown. Time: {shown}."


def _slower(level: Contrast | None, best: Contrast | None) -> bool:
    """Whether a level is shown to be slower than the best one; not where the best one's misses hide how slow it is."""
    apart = _between(level, best)
    hidden = (best is not None and best.missed_after > 0) or (level is not None and level.missed_before > 0)
    return apart.sure and apart.value > 0 and not hidden


def _told(estimate: Estimate) -> str:
    return f" ({ratio_interval(estimate)})" if estimate.error else ""


def _pairs(count: int) -> str:
    return f"{count} matched pair{'s' if count != 1 else ''}"
