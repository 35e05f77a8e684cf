"""The next wave of a stage whose trials are given by groups, with what it takes from those that are over.

The best value of an axis in a group is the one with the least mean over its trials: of the restricted time to the
target, a miss counting as the time it took; where nobody reached it, to the next looser loss that was timed; where
nobody reached any, of the validation loss. No hypothesis is tested. Limits: meant for groups that try every value
beside the same others, as pairs; one trial each is a hint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from podium.components.study.groups import grouped_stage, waves
from podium.components.study.schema import Study
from podium.components.study.waves import wave_trials
from podium.components.verdicts.survival import horizon_of
from podium.components.verdicts.verdict import AskedTrial, MoreTrials, StageResults, TrialOutcome


def next_wave(study: Study, results: StageResults) -> MoreTrials | None:
    """The trials of the stage's next wave; None where all have been asked for, or the stage has no groups."""
    if results.stage != grouped_stage(study):
        return None
    groups = study.stages[results.stage].groups
    order = waves(groups)
    asked = [each for each in results.asked if each.kind == "wave"]
    number = len(asked) + 1
    if number >= len(order):
        return None
    before = [*wave_trials(study, results.stage, 0, {}, []), *(trial for each in asked for trial in each.trials)]
    needed = sorted({(source, axis) for name in order[number] for axis, source in groups[name].takes.items()})
    taken: dict[str, dict[str, Any]] = {}
    numbers: dict[str, Any] = {}
    told = []
    for source, axis in needed:
        taken.setdefault(source, {})[axis], figures, measure = _best(study, results, before, source, axis)
        numbers[f"{axis} of {source}"] = {"by": measure, **figures}
        shown = ", ".join(f"{value} {figure:.4g}" for value, figure in figures.items())
        told.append(f"{axis} {taken[source][axis]} from group {source} ({measure}: {shown})")
    reason = f"wave {number + 1} of {len(order)}: groups {', '.join(order[number])}" + (
        f", with {'; '.join(told)}" if told else ""
    )
    trials = wave_trials(study, results.stage, number, taken, before)
    return MoreTrials(kind="wave", reason=reason, trials=trials, numbers=numbers)


def _best(
    study: Study, results: StageResults, before: Sequence[AskedTrial], source: str, axis: str
) -> tuple[Any, dict[str, float], str]:
    """The best value, every value's figure, and what that measures."""
    places = {(each.variant.name, each.seed): each.variant.axis_values[axis] for each in before if each.group == source}
    by_value: dict[str, list[TrialOutcome]] = {}
    values: dict[str, Any] = {}
    for value in study.axes[axis].values:
        own = [o for o in results.outcomes if (o.variant, o.seed) in places and places[o.variant, o.seed] == value]
        if own:
            values[str(value)], by_value[str(value)] = value, own
    for loss in _losses(study, results.stage):
        if any(_seconds(outcome, loss) is not None for own in by_value.values() for outcome in own):
            horizon = horizon_of([outcome for own in by_value.values() for outcome in own])
            figures = {name: _mean(_restricted(o, loss, horizon) for o in own) for name, own in by_value.items()}
            return _least(values, figures), figures, f"mean seconds to {loss:g}, misses up to {horizon:.1f}"
    known = {name: [o.final_val_loss for o in own if o.final_val_loss is not None] for name, own in by_value.items()}
    figures = {name: _mean(losses) for name, losses in known.items() if losses}
    if figures:
        return _least(values, figures), figures, "mean final validation loss"
    first = next(value for value in study.axes[axis].values if value in places.values())
    return first, {}, "nothing measured"


def _losses(study: Study, stage: str) -> list[float]:
    """The stage's target, then the looser ones."""
    rule = study.stages[stage].stop.target
    if rule is None:
        return []
    return [rule.loss, *sorted(loss for loss in rule.also if loss > rule.loss)]


def _seconds(outcome: TrialOutcome, loss: float) -> float | None:
    return outcome.targets.get(f"{loss:g}")


def _restricted(outcome: TrialOutcome, loss: float, horizon: float) -> float:
    """The time, or for a miss the time up to which it was seen; one that died would never have arrived."""
    seconds = _seconds(outcome, loss)
    return horizon if seconds is None else seconds


def _mean(values: Any) -> float:
    known = list(values)
    return math.fsum(known) / len(known)


def _least(values: Mapping[str, Any], figures: Mapping[str, float]) -> Any:
    return values[min(figures, key=lambda name: figures[name])]
