"""What figures are drawn from: a run's trials by stage, and what its verdicts and ledger say of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from podium.components.reporting.model import ReportData, Score, StageData, TrialData, arms_of, smallbench_scores
from podium.components.reporting.results_csv import axis_keys, flops_cell
from podium.components.reporting.table import axis_value
from podium.components.study.verdict import Arm

METRICS = {
    "final_val_loss": "validation loss, nats per token",
    "final_val_perplexity": "validation perplexity",
    "final_bits_per_byte": "bits per byte",
    "best_val_loss": "best validation loss, nats per token",
}
"""Metrics that are drawn → title of their axis."""


@dataclass(frozen=True)
class Difference:
    """An arm's difference to the baseline, below 0 is better, with a two-sided interval."""

    variant: str
    value: float
    low: float
    high: float
    p: float | None = None


@dataclass(frozen=True)
class PlotStage:
    """A stage with at least one trial that has a result."""

    name: str
    trials: tuple[TrialData, ...]
    """Those with a result."""
    flops: tuple[float | None, ...]
    """Training compute of each trial."""
    baseline: str = ""
    promoted: frozenset[str] = frozenset()
    decided: bool = False
    """Whether a verdict has said who is promoted."""
    metric: str = "final_val_loss"
    """The metric that the stage ranks by."""
    alpha: float = 0.05
    """Level of its test."""
    differences: tuple[Difference, ...] = ()
    """Those of the verdict; computed from the trials where it has none."""

    @property
    def quality(self) -> str:
        """The metric that a reader sees: perplexity for a loss, bits per byte where tokenizers differ."""
        return "final_bits_per_byte" if self.metric == "final_bits_per_byte" else "final_val_perplexity"

    def arms(self, metric: str) -> list[Arm]:
        """The stage's variants, baseline first, then in the trials' order."""
        arms = arms_of(self.trials, metric, self.baseline)
        return sorted(arms.values(), key=lambda arm: not arm.is_baseline)

    def ranked(self) -> list[Arm]:
        """The arms that have a value, best mean first."""
        if self.metric not in METRICS:
            return []
        return sorted((arm for arm in self.arms(self.metric) if arm.n), key=lambda arm: arm.mean)

    def of(self, arm: Arm) -> list[TrialData]:
        """The arm's trials."""
        return [trial for trial in self.trials if trial.variant.name == arm.name]


@dataclass(frozen=True)
class PlotAxis:
    """An axis: its name among a variant's values, its column in results.csv, and its title."""

    name: str
    key: str
    title: str


@dataclass(frozen=True)
class PlotData:
    """Everything that figures are drawn from."""

    stages: tuple[PlotStage, ...]
    axes: tuple[PlotAxis, ...] = ()
    smallbench: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """Variant → task → score."""
    spending: tuple[float, ...] = ()
    """US dollars of everything paid, in order; empty: what the trials cost."""
    planned_usd: float | None = None
    limit_usd: float | None = None

    @property
    def trials(self) -> list[TrialData]:
        """The trials of all stages."""
        return [trial for stage in self.stages for trial in stage.trials]

    def axis_values(self, trial: TrialData) -> dict[str, str]:
        """Name of an axis → the trial's value as text."""
        values = trial.variant.axis_values
        return {axis.name: axis_value(values[axis.name]) for axis in self.axes if axis.name in values}


def plot_data(data: ReportData) -> PlotData:
    """What a report's figures are drawn from."""
    planned = (data.plan or {}).get("usd")
    evaluations = {each.variant: each.metrics for each in data.evaluations}
    evaluated = {id(trial): variant for variant, trial in data.evaluated_trials.items()}
    scores = {variant: _rounded(evaluations[variant]) for t in data.trials if (variant := evaluated.get(id(t)))}
    return PlotData(
        stages=tuple(_stage(data, stage) for stage in data.stages if any(trial.result for trial in stage.trials)),
        axes=tuple(
            PlotAxis(name, key, data.study.axes[name].title or name) for name, key in axis_keys(data.study).items()
        ),
        smallbench={variant: found for variant, found in scores.items() if found},
        spending=_spending(data),
        planned_usd=planned if isinstance(planned, int | float) else None,
        limit_usd=data.study.budget.usd,
    )


def _stage(data: ReportData, stage: StageData) -> PlotStage:
    promotion, verdict = stage.stage.promotion, stage.verdict
    alpha = getattr(promotion, "alpha", None)
    trials = tuple(trial for trial in stage.trials if trial.result)
    found = [
        Difference(arm.variant, arm.difference, *arm.interval, p=arm.p)
        for arm in (verdict.ranking if verdict and promotion.metric in METRICS else ())
        if arm.difference is not None and arm.interval is not None
    ]
    return PlotStage(
        name=stage.name,
        trials=trials,
        flops=tuple(float(cell) if (cell := flops_cell(trial)) else None for trial in trials),
        baseline=data.baseline,
        promoted=frozenset(variant.name for variant in verdict.promoted) if verdict else frozenset(),
        decided=verdict is not None,
        metric=promotion.metric,
        alpha=0.05 if alpha is None else alpha,
        differences=tuple(found),
    )


def _rounded(metrics: Mapping[str, object]) -> dict[str, Score]:
    # to the digits that results.csv has, so that a figure drawn from it is the same to the byte
    whole = smallbench_scores({name: round(v, 4) if isinstance(v, float) else v for name, v in metrics.items()})
    return {task: score for task, score in whole.items() if math.isfinite(score[0])}


def _spending(data: ReportData) -> tuple[float, ...]:
    """What was paid, in the ledger's order; then trials that it does not name, in the stages' order."""
    costs = {t.key.name: t.result.cost_usd or 0.0 for t in data.trials if t.result and not t.reused_from}
    paid: dict[str, float] = {}
    for entry in data.ledger:
        if entry.kind == "trial_ended" and entry.key in costs:
            paid[entry.key] = costs[entry.key]
        elif entry.kind in ("gate", "evaluation") and entry.data.get("cost_usd"):
            paid[f"{entry.kind} {entry.key}"] = float(entry.data["cost_usd"])
    return tuple({**paid, **{name: cost for name, cost in costs.items() if name not in paid}}.values())
