"""Final figures of one arm, from wherever they lie: a run of ours, a CSV, JSON or JSONL file, or a speedrun folder.

What has no finite figure (a failed run, an empty cell) is left out, counted and said: missing stays missing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.components.study.run import Run
from podium.components.study.trials import RANKED
from podium.components.verdicts.arms import arms_of
from podium.components.verdicts.stats import pooled_over
from podium.trainer.trial.errors import NotFoundError, Problem, UserError
from podium.trainer.trial.result import Curve, Point, TrialResult, curve_of, read_lines
from podium.trainer.trial.storage import Storage, open_storage, split_uri

RESULTS, METRICS = "results.jsonl", "metrics.jsonl"
"""The files of a speedrun folder."""
_USUAL = ("losses", "values", "loss", "val_loss", "value")
"""Columns that are taken where none has the metric's name."""


@dataclass(frozen=True)
class Sample:
    """Figures of one arm."""

    name: str
    values: tuple[float, ...]
    excluded: int = 0
    """Runs without a finite figure."""
    curves: tuple[Curve, ...] = ()
    """The runs' evaluations, where they are known."""
    beside: tuple[tuple[float, ...], ...] = ()
    """The figures of the other arms of its stage: they tell of the same noise."""
    tokenizers: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one figure."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def read_sample(
    source: Run | str | Sequence[float],
    *,
    metric: str = "final_val_loss",
    variant: str | None = None,
    column: str | None = None,
) -> Sample:
    """The figures of a run's arm, of a file or folder, or of a list.

    A run (or the URI of its folder, or of a store for its newest run) stands for one arm of its last stage that has
    results: `variant`, else the winner of that stage's verdict. A file is a list of numbers (JSON, or one a line) or a
    table (CSV with a head, JSONL, a JSON list of objects), of which `column` is taken, by default the metric's. A
    folder with a results.jsonl is a speedrun folder. Raises UserError for what holds no such figures.
    """
    if isinstance(source, Run):
        return _of_run(source, metric, variant)
    if not isinstance(source, str):
        return _checked("values", list(source))
    path = Path(source)
    if path.is_file():
        folder, name = split_uri(source)
        return _checked(source, _figures(open_storage(folder).read_text(name), path.suffix, source, column, metric))
    if (path / RESULTS).is_file():
        return _of_folder(path, column, metric)
    return _of_run(Run.open(source), metric, variant)


def _of_run(run: Run, metric: str, variant: str | None) -> Sample:
    if metric not in TrialResult.model_fields:
        raise UserError(Problem("metric", f"no result has {metric!r}"))
    for stage in reversed(run.stages):
        verdict = run.verdict(stage)
        name = variant or (verdict.winner if verdict is not None else None)
        trials = run.trials(stage)
        by_arm: dict[str, list[tuple[Storage, TrialResult]]] = {}
        for trial in trials:
            result = run.result(trial.key)
            if result is not None:
                by_arm.setdefault(trial.variant.name, []).append((run.storage.child(trial.key.folder), result))
        own = by_arm.get(name or "", [])
        figures = [getattr(result, metric) if result.status in RANKED else None for _, result in own]
        if all(figure is None for figure in figures):
            continue
        tokenizers = {run.dataset_fingerprint(trial.variant) for trial in trials if trial.variant.name == name}
        others = [
            tuple(float(value) for _, result in arm if (value := getattr(result, metric)) is not None)
            for other, arm in sorted(by_arm.items())
            if other != name
        ]
        return _checked(
            f"{run.id}/{stage}/{name}",
            figures,
            curves=tuple(_curve(folder) for folder, result in own if result.status in RANKED),
            beside=tuple(others),
            tokenizers=frozenset(tokenizers),
            devices=frozenset(r.versions.device for _, r in own if r.versions and r.versions.device),
        )
    wanted = f"of variant {variant!r}" if variant else "of a winner"
    raise UserError(f"run {run.id} has no {metric} {wanted}")


def _curve(folder: Storage) -> Curve:
    try:
        return curve_of(read_lines(folder.read_text(METRICS)))
    except NotFoundError:
        return ()


def _of_folder(folder: Path, column: str | None, metric: str) -> Sample:
    rows = _objects((folder / RESULTS).read_text(encoding="utf-8"), str(folder / RESULTS))
    good = [row for row in rows if row.get("success", True)]
    name = column or _column(list(rows[0]) if rows else [], metric, str(folder / RESULTS))
    figures = [row.get(name) if row in good else None for row in rows]
    curves: dict[Any, list[Point]] = {}
    if (folder / METRICS).is_file():
        for line in _objects((folder / METRICS).read_text(encoding="utf-8"), str(folder / METRICS)):
            if line.get("val_loss") is not None:
                seconds = line["train_time_ms"] / 1000 if line.get("train_time_ms") is not None else None
                step = int(line["step"])
                curves.setdefault(line.get("run_id"), []).append(
                    Point(step, int(line.get("tokens") or step), float(line["val_loss"]), train_seconds=seconds)
                )
    wanted = [row.get("run_id") for row in good]
    return _checked(str(folder), figures, curves=tuple(curves[run] for run in wanted if run in curves))


def _figures(text: str, suffix: str, source: str, column: str | None, metric: str) -> list[Any]:
    stripped = text.lstrip()
    if suffix == ".csv":
        return _of_csv(text, source, column, metric)
    if suffix == ".jsonl":
        return _of_rows(_objects(text, source), source, column, metric)
    if stripped.startswith(("[", "{")):
        try:
            parsed = json.loads(text)
        except ValueError:
            return _of_rows(_objects(text, source), source, column, metric)
        if isinstance(parsed, Mapping):
            inner = parsed[column or _column(list(parsed), metric, source)] if column in (None, *parsed) else None
            parsed = inner if isinstance(inner, list) else [parsed]
        if parsed and all(isinstance(row, Mapping) for row in parsed):
            return _of_rows(parsed, source, column, metric)
        return list(parsed)
    try:
        return [float(line) for line in text.split()]
    except ValueError:
        return _of_csv(text, source, column, metric)


def _of_csv(text: str, source: str, column: str | None, metric: str) -> list[Any]:
    lines = list(csv.reader(io.StringIO(text)))
    rows = [row for row in lines if any(cell.strip() for cell in row)]
    if rows and len(rows[0]) == 1 and _number(rows[0][0]) is not None:
        return [row[0] for row in rows]
    if not rows or len(rows) < 2:
        raise _no_numbers(source)
    head = [cell.strip() for cell in rows[0]]
    table = [dict(zip(head, row, strict=False)) for row in rows[1:]]
    return _of_rows(table, source, column, metric)


def _of_rows(rows: Sequence[Mapping[str, Any]], source: str, column: str | None, metric: str) -> list[Any]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if column is not None and column not in names:
        raise UserError(Problem("--column", f"{source} has no {column!r}; it has: {', '.join(names)}"))
    name = column or _column(names, metric, source, rows)
    return [row.get(name) for row in rows]


def _column(names: list[str], metric: str, source: str, rows: Sequence[Mapping[str, Any]] = ()) -> str:
    for usual in (metric, *_USUAL):
        if usual in names:
            return usual
    numeric = [name for name in names if rows and all(_number(row.get(name)) is not None for row in rows)]
    if len(names) == 1 or len(numeric) == 1:
        return numeric[0] if numeric else names[0]
    raise UserError(Problem(source, f"has no column {metric!r}; name one by --column: {', '.join(names) or 'none'}"))


def _objects(text: str, source: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(
                Problem(f"{source}:{number}", f"must be one JSON object a line, got {line[:60]!r}")
            ) from None
        rows.append(row if isinstance(row, dict) else {"value": row})
    return rows


def _number(value: Any) -> float | None:
    """A finite number, or None: of text the number it says, of an empty cell or a boolean nothing."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "null", "none", "na")) or (
        isinstance(value, float) and math.isnan(value)
    )  # fmt: skip


def _checked(name: str, figures: Iterable[Any], **more: Any) -> Sample:
    figures = list(figures)
    numbers = [number for value in figures if (number := _number(value)) is not None]
    wrong = [value for value in figures if _number(value) is None and not _is_missing(value)]
    if any(not isinstance(value, int | float) for value in wrong):
        raise _no_numbers(name)
    if not numbers:
        raise UserError(Problem(name, f"must be at least one finite number, got {figures!r}"))
    return Sample(name, tuple(numbers), excluded=len(figures) - len(numbers), **more)


def _no_numbers(source: str) -> UserError:
    return UserError(
        Problem(
            source, "must be a JSON list of numbers, one number a line, or a table (CSV, JSONL) with a column of them"
        )
    )


# The SD over seeds that a proof is planned on: a past run's (pooled over the arms of its last stage), that of a file of
# figures, or a default with its source.

DEFAULT_SIGMA = 0.0013
DEFAULT_SIGMA_SOURCE = (
    "SD over seeds of the final validation loss of 124M-parameter runs, NanoGPT speedrun, track 1 (nats); "
    "another model or metric has its own: give --sigma or --from"
)


@dataclass(frozen=True)
class AssumedSd:
    """An SD over seeds and where it comes from."""

    sigma: float
    source: str


def sd_from(source: str, *, metric: str, column: str | None = None) -> AssumedSd:
    """The SD over seeds in a run (pooled over the arms of its last stage that has two seeds) or a file of figures.

    Raises UserError where there is none.
    """
    path = Path(source)
    if path.is_file() or (path / "results.jsonl").is_file():
        sample = read_sample(source, metric=metric, column=column)
        if not sample.sd:
            raise UserError(Problem("--from", f"{source} has no spread: {len(sample.values)} figures"))
        return AssumedSd(sample.sd, f"SD of {len(sample.values)} figures in {source}")
    return sd_of_run(Run.open(source))


def sd_of_run(run: Run) -> AssumedSd:
    """The SD over seeds of a run's last stage that has one, pooled over its arms. Raises UserError where none has."""
    for stage in reversed(run.stages):
        arms = arms_of(run.results(stage), baseline=run.study.baseline.variant, min_seeds=2)
        found = pooled_over(arm for arm in arms if not arm.why_not)
        if found.sd and math.isfinite(found.sd):
            count = sum(not arm.why_not for arm in arms)
            metric = run.study.stages[stage].promotion.metric
            return AssumedSd(found.sd, f"SD of {metric} in {run.id}/{stage}, pooled over {count} arms")
    raise UserError(Problem("--from", f"run {run.id} has no stage with two finished seeds of a variant"))


def default_sd() -> AssumedSd:
    """The SD that is assumed where nothing says another."""
    return AssumedSd(DEFAULT_SIGMA, DEFAULT_SIGMA_SOURCE)
