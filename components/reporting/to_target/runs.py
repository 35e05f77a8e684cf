"""The trials of a study of times as its analysis sees them: configuration, time, steps, and loss at equal tokens.

A miss has the time that it trained: it would have taken longer. A run that died (diverged, out of memory) would never
have arrived, so its time is the longest of its stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.study.design import value_name
from podium.components.study.fields import value_at
from podium.components.study.schema import Study
from podium.components.verdicts.ranking import FAILED
from podium.trainer.curve import Curve
from podium.trainer.result import TrialResult


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
