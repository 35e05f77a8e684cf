"""What the evaluation measured of the finalists, a column a variant. What was not measured says so, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podium.components.reporting.model import EvaluationData, ReportData
from podium.components.reporting.table import Column, Line, Table, number, text

MAX_VARIANTS = 8
UNMEASURED = "unmeasured"
"""Where metrics.json says why a field is null."""
NOT_MEASURED = "not measured"


def figure(field: str, value: Any) -> str:
    """A field's value as the page and results.csv write it: decimals by what the name says it is. Empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if "loss" in field or "bits_per" in field or field.startswith("smallbench_"):
        return f"{value:.4f}"
    if "perplexity" in field or field.endswith("_ms"):
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def smallbench_scores(metrics: Mapping[str, Any]) -> dict[str, tuple[float, float | None, float | None]]:
    """Task → (accuracy, standard error, share of the commonest label) of what was measured, between 0 and 1."""
    scores = {}
    for field, value in metrics.items():
        if field.startswith("smallbench_") and field.endswith("_accuracy") and value is not None:
            task = field.removeprefix("smallbench_").removesuffix("_accuracy")
            stem = f"smallbench_{task}"
            scores[task] = (float(value), metrics.get(f"{stem}_stderr"), metrics.get(f"{stem}_majority"))
    scores.pop("mean", None)
    return scores


def evaluation_tables(data: ReportData) -> list[Table]:
    """SmallBench, then every field of metrics.json in groups; fields of the last group are folded away."""
    shown = data.evaluations[:MAX_VARIANTS]
    fields = list(
        dict.fromkeys(f for e in shown for f in e.metrics if f != UNMEASURED and not f.startswith("smallbench_"))
    )
    tables = []
    for name, title, belongs in _GROUPS:
        chosen = [field for field in fields if belongs(field)]
        fields = [field for field in fields if field not in chosen]
        lines = [Line((label(field), *(_cell(field, e.metrics) for e in shown))) for field in chosen]
        tables.append(Table(f"evaluation-{name}", title, _columns("field", shown), tuple(lines), _why(shown, chosen)))
    tables.insert(len(tables) - 1, _smallbench_table(shown))
    last = tables[-1]
    tables[-1] = Table(last.name, last.title, last.columns, last.lines, last.note, fold=True)
    return [table for table in tables if table]


def _smallbench_table(shown: Sequence[EvaluationData]) -> Table:
    scores = {evaluation.variant: smallbench_scores(evaluation.metrics) for evaluation in shown}
    tasks = list(dict.fromkeys(task for found in scores.values() for task in found))
    majority = {task: next((s[task][2] for s in scores.values() if task in s), None) for task in tasks}
    lines = [
        Line((task.upper(), *(_score(scores[e.variant].get(task)) for e in shown), _percent(majority[task])))
        for task in tasks
    ]
    columns = (*_columns("task", shown), number("commonest label"))
    note = (
        "Accuracy in per cent ± one standard error over the examples; a model that knows nothing gets the last column."
    )
    if not tasks:
        reasons = {
            e.metrics.get(UNMEASURED, {}).get(field)
            for e in shown
            for field in e.metrics
            if field.startswith("smallbench_")
        }
        told = "; ".join(sorted(str(reason) for reason in reasons if reason))
        lines = [Line(("all tasks", *(NOT_MEASURED for _ in shown), ""))] if told else []
        note = f"Not measured: {told}."
    return Table("smallbench", "SmallBench", columns, tuple(lines), note)


def label(field: str) -> str:
    """`latency_128_p95_ms` as `latency 128 p95, ms`."""
    for ending, unit in _UNITS.items():
        if field.endswith(ending):
            return f"{field.removesuffix(ending).replace('_', ' ')}, {unit}"
    return field.replace("_", " ")


def _cell(field: str, metrics: Mapping[str, Any]) -> str:
    return figure(field, metrics.get(field)) or NOT_MEASURED


def _why(shown: Sequence[EvaluationData], fields: Sequence[str]) -> str:
    """`Not measured: peak memory mb (no CUDA device).`, one reason once."""
    reasons: dict[str, dict[str, None]] = {}
    for evaluation in shown:
        for field, reason in evaluation.metrics.get(UNMEASURED, {}).items():
            if field in fields:
                reasons.setdefault(str(reason), {})[label(field)] = None
    told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not measured: {told}." if told else ""


def _score(score: tuple[float, float | None, float | None] | None) -> str:
    if score is None:
        return NOT_MEASURED
    accuracy, error, _ = score
    return _percent(accuracy) + (f" ± {100 * error:.1f}" if error is not None else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _columns(first: str, shown: Sequence[EvaluationData]) -> tuple[Column, ...]:
    return (text(first), *(number(evaluation.variant) for evaluation in shown))


def is_quality(field: str) -> bool:
    """Losses, perplexities and bits per byte of a split."""
    return field.endswith(("_loss", "_perplexity", "_bits_per_byte"))


def is_cost(field: str) -> bool:
    """Times, speeds and memory."""
    return field.endswith(("_ms", "_tokens_per_second", "_mb", "_seconds"))


_MINOR = ("evaluation_seconds", "_mean_", "_min_", "_batch_")
"""Fields that results.csv and the last group have, and the table of costs leaves out."""
_UNITS = {"_ms": "ms", "_mb": "MB", "_tokens_per_second": "tokens/s", "_seconds": "s"}
_GROUPS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("quality", "Quality", lambda field: is_quality(field) and not field.startswith("training_")),
    (
        "cost",
        "Latency, throughput and memory",
        lambda field: is_cost(field) and not any(word in field for word in _MINOR),
    ),
    ("other", "Everything else that was recorded", lambda field: True),
)
