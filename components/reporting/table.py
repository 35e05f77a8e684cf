"""A table as data: the page, the summary and the console render the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from podium.components.reporting.model import EvaluationData, ReportData

Mark = Literal["", "winner", "baseline", "lost", "total"]


@dataclass(frozen=True)
class Column:
    """A column's heading and how its cells are set."""

    title: str
    number: bool = False
    """Right-aligned, digits of one width."""
    wide: bool = False
    """Prose that may wrap; other columns keep a line."""
    words: str = ""
    """The heading spelt out, for who hovers over it."""


@dataclass(frozen=True)
class Line:
    """A row and what marks it."""

    cells: tuple[str, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A titled table; its first column is the row's heading."""

    name: str
    """Identifier of it in the page."""
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    fold: bool = False
    """Long: the page shows it on request."""

    def __bool__(self) -> bool:
        return bool(self.lines)


def text(title: str, words: str = "") -> Column:
    """A column of short text."""
    return Column(title, words=words)


def prose(title: str) -> Column:
    """A column of sentences."""
    return Column(title, wide=True)


def number(title: str, words: str = "") -> Column:
    """A column of figures."""
    return Column(title, number=True, words=words)


# Numbers as the report writes them. results.csv and the page call the same functions, so a figure that a reader sees
# on the page is found in the CSV letter by letter.

MISSING = "—"
"""What the page shows where nothing was measured. The CSV leaves the cell empty."""


def loss(value: float | None) -> str:
    """Nats per token, four decimals: a tenth of the usual spread over seeds."""
    return _fixed(value, 4)


def bits_per_byte(value: float | None) -> str:
    """Bits per UTF-8 byte, four decimals."""
    return _fixed(value, 4)


def perplexity(value: float | None) -> str:
    """Two decimals; scientific from a million on, where only the order of magnitude means anything."""
    if value is not None and math.isfinite(value) and value >= 1e6:
        return f"{value:.2e}"
    return _fixed(value, 2)


def of_metric(metric: str, value: float | None) -> str:
    """A value of a ranking's metric: perplexities by two decimals, losses and bits per byte by four."""
    return perplexity(value) if metric.endswith("perplexity") else loss(value)


def decimals_of(metric: str) -> int:
    """Decimals of the metric's values and differences."""
    return 2 if metric.endswith("perplexity") else 4


def seconds(value: float | None) -> str:
    """Seconds, one decimal, without thousands separators so that the text is the CSV's."""
    return _fixed(value, 1)


def cost(value: float | None) -> str:
    """US dollars without the sign: cents, and four decimals below a dollar (a smoke trial costs less than a cent)."""
    return _fixed(value, 2 if value is not None and (abs(value) >= 1 or value == 0) else 4)


def usd(value: float | None) -> str:
    """A sum of US dollars with the sign: cents, and four decimals where cents would say nothing."""
    decimals = 2 if value is not None and (value == 0 or abs(value) >= 0.095) else 4
    text = _fixed(value, decimals)
    return text and f"${text}"


def count(value: float | None) -> str:
    """A whole number with thousands separators, for the page only."""
    return "" if value is None else f"{value:,.0f}"


def whole(value: float | None) -> str:
    """A whole number as digits."""
    return _fixed(value, 0)


def exact(value: float | None) -> str:
    """Every digit of the float, so that a value can be recomputed."""
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference with its sign, with a true minus."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(bounds: tuple[float, float] | None, decimals: int = 4) -> str:
    """`−0.0210 to −0.0040`."""
    return "" if bounds is None else f"{signed(bounds[0], decimals)} to {signed(bounds[1], decimals)}"


def p_value(value: float | None) -> str:
    """Two significant digits, and a bound where the test is far beyond doubt."""
    if value is None or not math.isfinite(value):
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def axis_value(value: object) -> str:
    """A value of an axis: numbers without trailing noise, everything else as it is written in the study."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def shown(text: str) -> str:
    """The cell on the page for a cell of the CSV."""
    return text or MISSING


def _fixed(value: float | None, decimals: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


# What the evaluation measured of the finalists, a column a variant. What was not measured says so, and why.

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
