"""What a figure is drawn from: the rows of a results.csv, parsed once. A report's figures come from its own CSV, so
that each of them can be drawn again from any such table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from podium.components.reporting.results_csv import COLUMNS, Row, parse_curve
from podium.components.reporting.table import smallbench_scores

FINISHED = frozenset({"completed", "target_reached", "missed_target"})
"""Statuses whose final value counts; a killed trial's is drawn apart."""

ALIASES = {
    "experiment_name": "variant",
    "val_loss": "final_val_loss",
    "val_perplexity": "final_val_perplexity",
    "bits_per_byte": "final_bits_per_byte",
}
"""Columns of other tables (phase1_summary.csv) under the name that results.csv has."""

METRICS = {
    "final_val_loss": "validation loss, nats per token",
    "final_val_perplexity": "validation perplexity",
    "final_bits_per_byte": "bits per byte",
    "best_val_loss": "best validation loss, nats per token",
}


@dataclass(frozen=True)
class PlotTrial:
    """One trial as a figure needs it."""

    stage: str
    variant: str
    seed: str
    status: str
    baseline: bool
    promoted: bool
    decided: bool
    """Whether a verdict has said who goes on."""
    values: Mapping[str, float]
    """Metric → value, where it is finite."""
    axes: Mapping[str, str]
    """Column of an axis → the value as text."""
    flops: float | None
    kill_tokens: int | None
    cost: float | None
    curve: tuple[tuple[int, float], ...]
    smallbench: Mapping[str, tuple[float, float | None, float | None]]
    """Task → (accuracy, standard error, share of the commonest label)."""

    @property
    def finished(self) -> bool:
        """Whether its final value may be ranked."""
        return self.status in FINISHED


@dataclass(frozen=True)
class Arm:
    """A variant in one stage."""

    variant: str
    baseline: bool
    promoted: bool
    trials: tuple[PlotTrial, ...]

    def values(self, metric: str) -> list[float]:
        """The metric of the finished seeds."""
        return [t.values[metric] for t in self.trials if t.finished and metric in t.values]

    def mean(self, metric: str) -> float | None:
        """Mean over the finished seeds, None for none."""
        values = self.values(metric)
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Difference:
    """An arm's difference to the baseline, below 0 is better, with a two-sided interval."""

    variant: str
    value: float
    low: float
    high: float
    p: float | None = None


@dataclass(frozen=True)
class PlotData:
    """The parsed rows, and what a report knows beyond them."""

    trials: tuple[PlotTrial, ...]
    axes: Mapping[str, str]
    """Column of an axis → its title."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Stage → the metric it ranks by; `final_val_loss` elsewhere."""
    differences: Mapping[str, Sequence[Difference]] = field(default_factory=dict)
    """Stage → the verdict's differences; computed from the rows where a stage has none here."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Stage → level of its test; 0.05 elsewhere."""
    spending: Sequence[tuple[str, float]] = ()
    """(what, US dollars) of everything paid, in order; a trial's costs in the rows' order where this is empty."""
    planned_usd: float | None = None
    limit_usd: float | None = None

    @property
    def stages(self) -> list[str]:
        """Stages in the order of the rows."""
        return list(dict.fromkeys(trial.stage for trial in self.trials))

    def metric(self, stage: str) -> str:
        """The metric that the stage ranks by."""
        return self.metrics.get(stage, "final_val_loss")

    def quality(self, stage: str) -> str:
        """The metric that a reader sees: perplexity for a loss, bits per byte where tokenizers differ."""
        return "final_bits_per_byte" if self.metric(stage) == "final_bits_per_byte" else "final_val_perplexity"

    def arms(self, stage: str) -> list[Arm]:
        """The stage's variants, baseline first, then as the rows have them."""
        groups: dict[str, list[PlotTrial]] = {}
        for trial in self.trials:
            if trial.stage == stage:
                groups.setdefault(trial.variant, []).append(trial)
        arms = [Arm(v, any(t.baseline for t in ts), any(t.promoted for t in ts), tuple(ts)) for v, ts in groups.items()]
        return sorted(arms, key=lambda arm: not arm.baseline)

    def ranked(self, stage: str) -> list[Arm]:
        """The arms that have a value, best mean first."""
        metric = self.metric(stage)
        known = [(mean, arm) for arm in self.arms(stage) if (mean := arm.mean(metric)) is not None]
        return [arm for _, arm in sorted(known, key=lambda pair: pair[0])]


def from_rows(rows: Iterable[Row], columns: Sequence[str], titles: Mapping[str, str] | None = None) -> PlotData:
    """Parse the rows of a results.csv (or of phase1_summary.csv). Axes are the columns that no results.csv has of
    itself and in which the rows differ; `titles` names them for a reader and, where given, says which they are."""
    table = [{ALIASES.get(key, key): cell for key, cell in row.items()} for row in rows]
    names = [ALIASES.get(column, column) for column in columns]
    if titles is None:
        further = [n for n in names if n not in COLUMNS and n not in _OTHER and not n.startswith(_MEASURED)]
        titles = {name: name.replace("_", " ") for name in further if len({row.get(name, "") for row in table}) > 1}
    trials = tuple(_trial(row, titles) for row in _unshared(table) if row.get("status") != "pending")
    return PlotData(trials, dict(titles))


_MEASURED = ("smallbench_", "evaluation_")
_OTHER = frozenset({"run", "source", "experiment_name", "axis", "total_parameters", "tokens_seen"})


def _unshared(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows that share a trial are one trial: a baseline is a row of each axis in phase1_summary.csv."""
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    for index, row in enumerate(table):
        trial = row.get("trial")
        key = (row.get("run_id", ""), row.get("stage", ""), trial) if trial else (str(index),)
        kept.setdefault(key, row)
    return list(kept.values())


def _trial(row: Mapping[str, str], titles: Mapping[str, str]) -> PlotTrial:
    numbers = {metric: _number(row.get(f"{metric}_exact") or row.get(metric)) for metric in METRICS}
    kill = _number(row.get("kill_tokens"))
    scores = smallbench_scores({column: _number(cell) for column, cell in row.items() if "smallbench_" in column})
    return PlotTrial(
        stage=row.get("stage") or "results",
        variant=row.get("variant") or "",
        seed=row.get("seed") or "",
        status=row.get("status") or "completed",
        baseline=row.get("role") == "baseline",
        promoted=row.get("promoted") == "yes",
        decided=row.get("promoted") in ("yes", "no"),
        values={metric: value for metric, value in numbers.items() if value is not None},
        axes={key: row[key] for key in titles if row.get(key)},
        flops=_number(row.get("training_flops")),
        kill_tokens=None if kill is None else int(kill),
        cost=_number(row.get("cost_usd_exact") or row.get("cost_usd")),
        curve=tuple(parse_curve(row.get("val_loss_curve") or "")),
        smallbench=scores,
    )


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None
