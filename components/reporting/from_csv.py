"""Plots from a results table: what a report draws, from the CSV of a run, of many runs, or of the hand-run study.

python -m podium.components.reporting.from_csv results.csv --to plots
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from podium.components.reporting.figures.data import METRICS, PlotAxis, PlotData, PlotStage
from podium.components.reporting.figures.gallery import all_figures
from podium.components.reporting.model import PENDING, Score, TrialData, smallbench_scores
from podium.components.reporting.results_csv import COLUMNS, Row, parse_curve, read_csv
from podium.components.study.layout import TrialKey
from podium.components.study.verdict import VariantRef
from podium.trainer.trial.errors import UserError
from podium.trainer.trial.result import Point, Status, TrialResult

NEEDED = ("final_val_loss", "final_val_perplexity", "val_loss", "val_perplexity")
ALIASES = {
    "experiment_name": "variant",
    "val_loss": "final_val_loss",
    "val_perplexity": "final_val_perplexity",
    "bits_per_byte": "final_bits_per_byte",
}
"""Columns of other tables (phase1_summary.csv) under the name that results.csv has."""
_MEASURED = ("smallbench_", "evaluation_")
_OTHER = frozenset({"run", "source", "experiment_name", "axis", "total_parameters", "tokens_seen"})


def plots_from_csv(csv_path: Path, out_dir: Path) -> list[Path]:
    """Draw every figure that the table allows into `out_dir`; returns the files.

    Takes results.csv, several of them merged (then each run's stages are drawn apart), or phase1_summary.csv.
    Raises UserError where the file is missing or is no table of results.
    """
    if not csv_path.is_file():
        raise UserError(f"no such file: {csv_path}")
    columns, rows = read_csv(csv_path.read_text(encoding="utf-8"))
    if not any(column in columns for column in NEEDED):
        raise UserError(f"{csv_path}: must have a column {' or '.join(NEEDED)}, got {', '.join(columns) or 'nothing'}")
    figures = all_figures(from_rows(rows, columns))
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        path = out_dir / f"{figure.name}.svg"
        path.write_text(figure.svg, encoding="utf-8")
        written.append(path)
    return written


def from_rows(rows: Iterable[Row], columns: Sequence[str]) -> PlotData:
    """The rows of results.csv or phase1_summary.csv as the data of a report's figures.

    Axes are the columns that no results.csv has of itself and in which the rows differ.
    """
    table = [{ALIASES.get(key, key): cell for key, cell in row.items()} for row in _apart(list(rows))]
    names = [ALIASES.get(column, column) for column in columns]
    further = [n for n in names if n not in COLUMNS and n not in _OTHER and not n.startswith(_MEASURED)]
    axes = tuple(PlotAxis(n, n, n.replace("_", " ")) for n in further if len({row.get(n, "") for row in table}) > 1)
    stages: dict[str, list[tuple[Row, TrialData]]] = {}
    scores: dict[str, dict[str, Score]] = {}
    for index, row in enumerate(_unshared(table)):
        if row.get("status") != PENDING:
            trial = _trial(index, row, axes)
            stages.setdefault(trial.key.stage, []).append((row, trial))
            measured = {column: _number(cell) for column, cell in row.items() if "smallbench_" in column}
            if found := smallbench_scores(measured):
                scores[trial.variant.name] = found
    return PlotData(tuple(_stage(name, pairs) for name, pairs in stages.items()), axes, scores)


def _stage(name: str, pairs: Sequence[tuple[Row, TrialData]]) -> PlotStage:
    return PlotStage(
        name=name,
        trials=tuple(trial for _, trial in pairs),
        flops=tuple(_number(row.get("training_flops")) for row, _ in pairs),
        baseline=next((trial.variant.name for row, trial in pairs if row.get("role") == "baseline"), ""),
        promoted=frozenset(trial.variant.name for row, trial in pairs if row.get("promoted") == "yes"),
        decided=any(row.get("promoted") in ("yes", "no") for row, _ in pairs),
    )


def _trial(index: int, row: Row, axes: Sequence[PlotAxis]) -> TrialData:
    seed = row.get("seed") or ""
    # a table without seeds has one trial per row
    key = TrialKey(row.get("stage") or "results", row.get("variant") or "", int(seed) if seed.isdigit() else index)
    kill = _number(row.get("kill_tokens"))
    metrics: dict[str, Any] = {name: _number(row.get(f"{name}_exact") or row.get(name)) for name in METRICS}
    result = TrialResult(
        run_name=key.name,
        status=_status(index, row.get("status") or Status.COMPLETED),
        reason=row.get("reason") or "",
        seed=key.seed,
        kill_tokens=None if kill is None else int(kill),
        cost_usd=_number(row.get("cost_usd_exact") or row.get("cost_usd")),
        **metrics,
    )
    values = {axis.name: row[axis.name] for axis in axes if row.get(axis.name)}
    curve = tuple(Point(0, tokens, loss) for tokens, loss in parse_curve(row.get("val_loss_curve") or ""))
    return TrialData(key, VariantRef(name=key.variant, axis_values=values), result, curve)


def _status(index: int, cell: str) -> Status:
    try:
        return Status(cell)
    except ValueError:
        allowed = ", ".join((PENDING, *Status))
        raise UserError(f"row {index + 1}: status must be one of {allowed}, got {cell!r}") from None


def _unshared(table: Sequence[Row]) -> list[Row]:
    """Rows that share a trial are one trial: a baseline is a row of each axis in phase1_summary.csv."""
    kept: dict[tuple[str, ...], Row] = {}
    for index, row in enumerate(table):
        trial = row.get("trial")
        key = (row.get("run_id", ""), row.get("stage", ""), trial) if trial else (str(index),)
        kept.setdefault(key, row)
    return list(kept.values())


def _apart(rows: list[Row]) -> list[Row]:
    """Rows of several runs with the run in their stage's name, so that no figure mixes two runs."""
    runs = list(dict.fromkeys(row.get("run_id", "") for row in rows))
    if len(runs) < 2:
        return rows
    return [row | {"stage": f"{row.get('stage', '')} {row.get('run_id', '')[-8:]}".strip()} for row in rows]


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 for a file that can't serve."""
    parser = argparse.ArgumentParser(prog="podium.components.reporting.from_csv", description=__doc__)
    parser.add_argument("csv", type=Path, help="results.csv, several of them merged, or phase1_summary.csv")
    parser.add_argument("--to", type=Path, default=Path("plots"), help="folder for the SVG files; it is made")
    given = parser.parse_args(arguments)
    try:
        for path in plots_from_csv(given.csv, given.to):
            print(path)
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
