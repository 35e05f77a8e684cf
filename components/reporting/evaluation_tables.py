"""What the evaluation measured of the finalists, a column a variant. What was not measured stays so, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podium.components.reporting.model import EvaluationData, ReportData
from podium.components.reporting.results_csv import smallbench_scores
from podium.components.reporting.table import Column, Line, Table, number, text

MAX_VARIANTS = 8
REASONS = ("reasons", "not_measured", "unmeasured", "null_reasons")
"""Where metrics.json says why a field is null."""


def smallbench_table(data: ReportData) -> Table:
    """Accuracy with its standard error, a row a task."""
    shown = data.evaluations[:MAX_VARIANTS]
    scores = {evaluation.variant: smallbench_scores(evaluation) for evaluation in shown}
    tasks = list(dict.fromkeys(task for found in scores.values() for task in found))
    lines = [Line((task.upper(), *(_score(scores[e.variant].get(task)) for e in shown))) for task in tasks]
    note = "Accuracy in per cent ± one standard error over the examples."
    return Table("smallbench", "SmallBench", _columns("task", shown), tuple(lines), note)


def evaluation_tables(data: ReportData) -> list[Table]:
    """Every field of metrics.json, in groups by the first word of the field."""
    shown = data.evaluations[:MAX_VARIANTS]
    flat = {evaluation.variant: flatten(evaluation.metrics) for evaluation in shown}
    why = {evaluation.variant: _reasons(evaluation.metrics) for evaluation in shown}
    fields = list(dict.fromkeys(field for found in flat.values() for field in found))
    tables = []
    for name, title, belongs in _GROUPS:
        chosen = [field for field in fields if belongs(field)]
        fields = [field for field in fields if field not in chosen]
        lines = [
            Line((field.replace("_", " "), *(_cell(field, flat[e.variant], why[e.variant]) for e in shown)))
            for field in chosen
        ]
        fold = name == "other"
        tables.append(Table(f"evaluation-{name}", title, _columns("field", shown), tuple(lines), "", fold))
    return [table for table in tables if table]


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under joined names; reasons and lists apart."""
    found: dict[str, Any] = {}
    for key, value in metrics.items():
        if key in REASONS or key.endswith("_reason"):
            continue
        name = f"{prefix}_{key}" if prefix else key
        if isinstance(value, Mapping):
            found |= flatten(value, name)
        elif not isinstance(value, list | tuple):
            found[name] = value
    return found


def _reasons(metrics: Mapping[str, Any]) -> dict[str, str]:
    found = {
        key.removesuffix("_reason"): str(value) for key, value in metrics.items() if key.endswith("_reason") and value
    }
    for name in REASONS:
        given = metrics.get(name)
        found |= {str(key): str(value) for key, value in given.items()} if isinstance(given, Mapping) else {}
    return found


def _cell(field: str, values: Mapping[str, Any], why: Mapping[str, str]) -> str:
    if field not in values or values[field] is None:
        return f"not measured: {why[field]}" if field in why else "not measured"
    return figure(field, values[field])


def figure(field: str, value: Any) -> str:
    """A field's value as the table writes it: decimals by what the name says it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
    if "perplexity" in field or field.endswith("_ms"):
        return f"{value:.2f}"
    if "loss" in field or "bits_per" in field or "accuracy" in field:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _score(score: tuple[float, float | None] | None) -> str:
    if score is None:
        return "not measured"
    accuracy, error = score
    return f"{100 * accuracy:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _columns(first: str, shown: tuple[EvaluationData, ...]) -> tuple[Column, ...]:
    return (text(first), *(number(evaluation.variant) for evaluation in shown))


def _quality(field: str) -> bool:
    return any(word in field for word in ("loss", "perplexity", "bits_per_byte"))


def _speed(field: str) -> bool:
    return any(word in field for word in ("latency", "throughput", "tokens_per_second"))


def _size(field: str) -> bool:
    return any(word in field for word in ("memory", "parameters", "bytes", "size"))


_GROUPS = (
    ("quality", "Quality", _quality),
    ("speed", "Latency and throughput", _speed),
    ("size", "Memory and parameters", _size),
    ("other", "Everything else that was recorded", lambda field: True),
)
