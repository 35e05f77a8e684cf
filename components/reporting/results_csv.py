"""results.csv: a row per trial. Every figure of a trial that the report shows is a cell of it, letter by letter."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from podium.components.reporting import table
from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.study import design
from podium.components.study.schema import Axis, Study
from podium.trainer.trial.result import Point, TrialResult

Row = dict[str, str]
"""Column → text; empty where there is nothing."""

CURVE_POINTS = 100
"""At most so many evaluations of a trial go into its row."""

COLUMNS = [
    "run_id", "study", "stage", "variant", "role", "promoted", "seed", "trial", "status", "reason", "final_val_loss",
    "final_val_perplexity", "final_bits_per_byte", "best_val_loss", "best_val_perplexity", "best_step",
    "final_train_loss", "target_loss", "reached_target", "time_to_target_seconds", "metric", "metric_value", "steps",
    "tokens", "passes", "kill_tokens", "stopped_tokens", "kill_detail", "training_seconds", "evaluation_seconds",
    "compile_seconds", "checkpoint_seconds", "device_seconds", "elapsed_seconds", "tokens_per_second",
    "peak_memory_mb", "cost_usd", "attempts", "reused_from", "parameters", "embedding_parameters",
    "attention_parameters", "feed_forward_parameters", "norm_parameters", "output_parameters", "d_model", "n_layers",
    "n_heads", "d_ff", "training_flops", "device", "device_count", "threads", "podium", "commit", "image", "python",
    "torch", "cuda", "fingerprint", "tokenizer", "final_val_loss_exact", "final_val_perplexity_exact",
    "final_bits_per_byte_exact", "training_seconds_exact", "cost_usd_exact", "val_loss_curve", "log_tail",
]  # fmt: skip
"""The columns that every results.csv has. Between `seed` and `trial` comes one for each axis, at the end
`smallbench_<task>_accuracy` and the like and `evaluation_<field>` for trials whose model was evaluated."""

FORMATS: dict[str, Callable[[Any], str]] = {
    "final_val_loss": table.loss,
    "final_val_perplexity": table.perplexity,
    "final_bits_per_byte": table.bits_per_byte,
    "best_val_loss": table.loss,
    "best_val_perplexity": table.perplexity,
    "final_train_loss": table.loss,
    "target_loss": table.loss,
    "reached_target": json.dumps,
    "passes": "{:.2f}".format,
    "tokens_per_second": table.whole,
    "cost_usd": table.cost,
    "log_tail": "\n".join,
}
"""How a field of a result is written; `_seconds` with one decimal, others as they are."""


def axis_key(name: str, axis: Axis) -> str:
    """The column of an axis: its key, else the field's last part; prefixed where that is a column already."""
    key = design.axis_key(axis)
    return f"axis_{name}" if key in COLUMNS else key


def axis_keys(study: Study) -> dict[str, str]:
    """Axis → its column."""
    return {name: axis_key(name, axis) for name, axis in study.axes.items()}


def result_rows(data: ReportData) -> list[Row]:
    """A row for each trial of each stage, in order, trials without a result included."""
    measured = {evaluation.variant: _evaluation_cells(evaluation.metrics) for evaluation in data.evaluations}
    evaluated = data.evaluated_trials
    tokenizers = {variant: dataset.fingerprint for dataset in data.datasets for variant in dataset.variants}
    rows = []
    for stage in data.stages:
        for trial in stage.trials:
            name = trial.variant.name
            row = _row(data, stage, trial) | {"tokenizer": tokenizers.get(name, "")}
            rows.append(row | measured[name] if evaluated.get(name) is trial else row)
    return rows


def columns_of(rows: Sequence[Row], axes: Iterable[str] = ()) -> list[str]:
    """The columns in order: the common ones, the axes after `seed`, further ones at the end."""
    place = COLUMNS.index("seed") + 1
    columns = [*COLUMNS[:place], *axes, *COLUMNS[place:]]
    return list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The table as text, RFC 4180 quoting, `\\n` line ends."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def results_csv(data: ReportData, rows: list[Row]) -> str:
    """The whole file, of the rows that `result_rows` made."""
    return to_csv(rows, columns_of(rows, axis_keys(data.study).values()))


def read_csv(text: str) -> tuple[list[str], list[Row]]:
    """(columns, rows) of a results.csv."""
    csv.field_size_limit(10**9)
    reader = csv.DictReader(io.StringIO(text))
    return list(reader.fieldnames or []), [dict(row) for row in reader]


def training_flops(result: TrialResult, sequence_length: int | None) -> float | None:
    """Floating-point operations of the training: 6 per matrix parameter and token, and 12·layers·d_model·T per token
    for attention (Chowdhery et al., 2022, appendix B). None where the model is not known."""
    counts = result.parameters
    if counts is None or not result.tokens:
        return None
    head = counts.output or counts.embedding
    matrices = counts.attention + counts.feed_forward + head
    attention = 12 * (result.n_layers or 0) * (result.d_model or 0) * (sequence_length or 0)
    return float((6 * matrices + attention) * result.tokens)


def flops_cell(trial: TrialData) -> str:
    """The training's floating-point operations, five digits; empty where they are not known."""
    length = trial.config.data.sequence_length if trial.config else None
    flops = training_flops(trial.result, length) if trial.result else None
    return "" if flops is None or not math.isfinite(flops) else f"{flops:.4e}"


def elapsed_seconds(result: TrialResult) -> float | None:
    """Wall-clock seconds of the trial, lost attempts included: the device-seconds it held over its devices; the parts
    that the trainer's own clock counted where no conductor filled that in."""
    if result.device_seconds is not None:
        return result.device_seconds / (result.versions.world_size if result.versions else 1)
    return sum(clock or 0.0 for clock in result.clocks) if result.training_seconds is not None else None


def thinned(curve: Sequence[Point], limit: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """(tokens, loss to four decimals), thinned evenly to `limit`; the first and the last evaluation always stay.

    Figures draw these: whoever plots an exported results.csv gets the report's figures to the byte.
    """
    finite = [(point.tokens, round(point.val_loss, 4)) for point in curve if point.val_loss is not None]
    if len(finite) > limit:
        step = (len(finite) - 1) / (limit - 1)
        finite = [finite[round(index * step)] for index in range(limit)]
    return finite


def curve_cell(curve: Sequence[Point]) -> str:
    """`tokens:loss` pairs."""
    return " ".join(f"{tokens}:{table.loss(loss)}" for tokens, loss in thinned(curve))


def parse_curve(cell: str) -> list[tuple[int, float]]:
    """(tokens, loss) pairs of a `val_loss_curve` cell."""
    pairs = (part.split(":") for part in cell.split())
    return [(int(tokens), float(loss)) for tokens, loss in pairs]


def _evaluation_cells(metrics: Mapping[str, Any]) -> Row:
    """What the evaluation measured of the trial's model: SmallBench under its own names, the rest with a prefix."""
    cells: Row = {}
    for field, value in metrics.items():
        if field.startswith("smallbench_"):
            cells[field] = table.figure(field, value)
        elif table.is_quality(field) or table.is_cost(field):
            cells[f"evaluation_{field.removeprefix('evaluation_')}"] = table.figure(field, value)
    return cells


def _row(data: ReportData, stage: StageData, trial: TrialData) -> Row:
    name = trial.variant.name
    row = _result_cells(trial.result) if trial.result else {}
    row |= {
        "run_id": data.run_id,
        "study": data.study.name,
        "stage": stage.name,
        "variant": name,
        "role": "baseline" if name == data.baseline else "",
        "seed": str(trial.key.seed),
        "trial": trial.key.name,
        "status": trial.status,
        "reused_from": trial.reused_from or "",
        "training_flops": flops_cell(trial),
        "val_loss_curve": curve_cell(trial.curve),
    }
    if stage.verdict:
        row["promoted"] = "yes" if any(name == variant.name for variant in stage.verdict.promoted) else "no"
    if trial.result:
        metric = stage.stage.promotion.metric
        # as the verdicts' sentences write it, whatever the metric
        row |= {"metric": metric, "metric_value": table.loss(getattr(trial.result, metric))}
    values = trial.variant.axis_values
    return row | {key: table.axis_value(values[axis]) for axis, key in axis_keys(data.study).items() if axis in values}


def _result_cells(result: TrialResult) -> Row:
    versions = result.versions
    values: dict[str, Any] = {name: getattr(result, name) for name in COLUMNS if hasattr(result, name)}
    values |= versions.model_dump() | {"device_count": versions.world_size} if versions else {}
    values |= {"elapsed_seconds": elapsed_seconds(result), "parameters": None}
    if result.peak_memory_bytes is not None:
        values["peak_memory_mb"] = table.whole(result.peak_memory_bytes / 1e6)
    if result.parameters:
        parts = result.parameters.model_dump()
        values |= {"parameters": parts["total"], **{f"{part}_parameters": count for part, count in parts.items()}}
    cells = {name: _cell(name, values[name]) for name in COLUMNS if values.get(name) is not None}
    exact = (name for name in COLUMNS if name.endswith("_exact"))
    return cells | {name: table.exact(getattr(result, name.removesuffix("_exact"))) for name in exact}


def _cell(name: str, value: Any) -> str:
    return FORMATS.get(name, table.seconds if name.endswith("_seconds") else str)(value)
