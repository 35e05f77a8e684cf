"""results.csv: a row a trial. Every figure of a trial that the report shows is a cell of it, letter by letter."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from podium.components.reporting import table
from podium.components.reporting.model import ReportData, StageData, TrialData
from podium.components.reporting.table import figure, is_cost, is_quality
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
    evaluated = _evaluated_trials(data)
    tokenizers = {variant: dataset.fingerprint for dataset in data.datasets for variant in dataset.variants}
    rows = []
    for stage in data.stages:
        promoted = _promoted(stage)
        for trial in stage.trials:
            row = _row(data, stage, trial, promoted)
            row["tokenizer"] = tokenizers.get(trial.variant.name, "")
            if evaluated.get(trial.variant.name) == trial.key.name:
                row.update(measured[trial.variant.name])
            rows.append(row)
    return rows


def columns_of(rows: Sequence[Row], axes: Iterable[str] = ()) -> list[str]:
    """The columns in order: the common ones, the axes after `seed`, further ones at the end."""
    axes = list(axes)
    known = {*COLUMNS, *axes}
    further: dict[str, None] = {}
    for row in rows:
        further.update(dict.fromkeys(key for key in row if key not in known))
    place = COLUMNS.index("seed") + 1
    return [*COLUMNS[:place], *axes, *COLUMNS[place:], *further]


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


def curve_cell(curve: Sequence[Point], limit: int = CURVE_POINTS) -> str:
    """`tokens:loss` pairs, thinned evenly to `limit`; the first and the last evaluation always stay."""
    finite = [point for point in curve if point.val_loss is not None]
    if len(finite) > limit:
        step = (len(finite) - 1) / (limit - 1)
        finite = [finite[round(index * step)] for index in range(limit)]
    return " ".join(f"{point.tokens}:{table.loss(point.val_loss)}" for point in finite)


def parse_curve(cell: str) -> list[tuple[int, float]]:
    """(tokens, loss) pairs of a `val_loss_curve` cell."""
    pairs = (part.split(":") for part in cell.split())
    return [(int(tokens), float(loss)) for tokens, loss in pairs]


def _promoted(stage: StageData) -> dict[str, str]:
    if stage.verdict is None:
        return {}
    on = {variant.name for variant in stage.verdict.promoted}
    return {trial.variant.name: "yes" if trial.variant.name in on else "no" for trial in stage.trials}


def _evaluated_trials(data: ReportData) -> dict[str, str]:
    """Variant → the trial whose model the evaluation took: the one that its checkpoint lies in, else the first with a
    model of the last stage that the variant was in."""
    chosen: dict[str, str] = {}
    for evaluation in data.evaluations:
        checkpoint = str(evaluation.metrics.get("checkpoint") or "")
        named = [t.key.name for t in data.trials if f"/{t.key.folder}/" in checkpoint]
        for stage in data.stages if not named else ():
            models = [t for t in stage.trials if t.variant.name == evaluation.variant and t.result]
            named = [t.key.name for t in models if t.result and t.result.final_model][:1] or named
        if named:
            chosen[evaluation.variant] = named[0]
    return chosen


def _evaluation_cells(metrics: Mapping[str, Any]) -> Row:
    """What the evaluation measured of the trial's model: SmallBench under its own names, the rest with a prefix."""
    cells: Row = {}
    for field, value in metrics.items():
        if field.startswith("smallbench_"):
            cells[field] = figure(field, value)
        elif is_quality(field) or is_cost(field):
            cells[f"evaluation_{field.removeprefix('evaluation_')}"] = figure(field, value)
    return cells


def _row(data: ReportData, stage: StageData, trial: TrialData, promoted: Mapping[str, str]) -> Row:
    row: Row = {
        "run_id": data.run_id,
        "study": data.study.name,
        "stage": stage.name,
        "variant": trial.variant.name,
        "role": "baseline" if trial.variant.name == data.baseline else "",
        "promoted": promoted.get(trial.variant.name, ""),
        "seed": str(trial.key.seed),
        "trial": trial.key.name,
        "status": trial.status,
        "reused_from": trial.reused_from or "",
    }
    for name, key in axis_keys(data.study).items():
        if name in trial.variant.axis_values:
            row[key] = table.axis_value(trial.variant.axis_values[name])
    if trial.result:
        metric = stage.stage.promotion.metric
        row["metric"] = metric
        # as the verdicts' sentences write it, whatever the metric
        row["metric_value"] = table.loss(getattr(trial.result, metric))
        row.update(_result_cells(trial.result, trial.config.data.sequence_length if trial.config else None))
    row["val_loss_curve"] = curve_cell(trial.curve)
    return row


def elapsed_seconds(result: TrialResult) -> float | None:
    """Wall-clock seconds of the trial, lost attempts included: the device-seconds it held over its devices; the parts
    that the trainer's own clock counted where no conductor filled that in."""
    if result.device_seconds is not None:
        return result.device_seconds / (result.versions.world_size if result.versions else 1)
    clocks = result.clocks
    return sum(clock or 0.0 for clock in clocks) if result.training_seconds is not None else None


def _result_cells(result: TrialResult, sequence_length: int | None) -> Row:
    flops = training_flops(result, sequence_length)
    memory = result.peak_memory_bytes
    cells: dict[str, Any] = {
        "reason": result.reason,
        "final_val_loss": table.loss(result.final_val_loss),
        "final_val_perplexity": table.perplexity(result.final_val_perplexity),
        "final_bits_per_byte": table.bits_per_byte(result.final_bits_per_byte),
        "best_val_loss": table.loss(result.best_val_loss),
        "best_val_perplexity": table.perplexity(result.best_val_perplexity),
        "final_train_loss": table.loss(result.final_train_loss),
        "target_loss": table.loss(result.target_loss),
        "reached_target": "" if result.reached_target is None else json.dumps(result.reached_target),
        "passes": "" if result.passes is None else f"{result.passes:.2f}",
        "tokens_per_second": table.whole(result.tokens_per_second),
        "peak_memory_mb": table.whole(memory / 1e6) if memory is not None else "",
        "cost_usd": table.cost(result.cost_usd),
        "elapsed_seconds": table.seconds(elapsed_seconds(result)),
        "training_flops": "" if flops is None or not math.isfinite(flops) else f"{flops:.4e}",
        "final_val_loss_exact": table.exact(result.final_val_loss),
        "final_val_perplexity_exact": table.exact(result.final_val_perplexity),
        "final_bits_per_byte_exact": table.exact(result.final_bits_per_byte),
        "training_seconds_exact": table.exact(result.training_seconds),
        "cost_usd_exact": table.exact(result.cost_usd),
        "log_tail": "\n".join(result.log_tail),
    }
    timed = (
        "time_to_target_seconds training_seconds evaluation_seconds compile_seconds checkpoint_seconds device_seconds"
    )
    for name in timed.split():
        cells[name] = table.seconds(getattr(result, name))
    plain = "best_step steps tokens kill_tokens stopped_tokens kill_detail attempts d_model n_layers n_heads d_ff"
    for name in (*plain.split(), "fingerprint"):
        cells[name] = _text(getattr(result, name))
    if result.parameters:
        cells["parameters"] = str(result.parameters.total)
        for part in ("embedding", "attention", "feed_forward", "norm", "output"):
            cells[f"{part}_parameters"] = str(getattr(result.parameters, part))
    if result.versions:
        for name in ("device", "threads", "podium", "commit", "image", "python", "torch", "cuda"):
            cells[name] = _text(getattr(result.versions, name))
        cells["device_count"] = str(result.versions.world_size)
    return cells


def _text(value: object) -> str:
    return "" if value is None else str(value)
