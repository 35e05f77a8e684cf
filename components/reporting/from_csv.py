"""Plots from a results table: what a report draws, from the CSV of a run, of many runs, or of the hand-run study.

python -m podium.components.reporting.from_csv results.csv --to plots
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from podium.components.reporting.figures.data import Difference, PlotData, from_rows
from podium.components.reporting.figures.gallery import all_figures
from podium.components.reporting.figures.style import Figure
from podium.components.reporting.model import ReportData
from podium.components.reporting.results_csv import Row, axis_keys, read_csv
from podium.trainer.trial.errors import UserError

NEEDED = ("final_val_loss", "final_val_perplexity", "val_loss", "val_perplexity")


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
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in all_figures(from_rows(_apart(rows), columns)):
        path = out_dir / f"{figure.name}.svg"
        path.write_text(figure.svg, encoding="utf-8")
        written.append(path)
    return written


def report_figures(data: ReportData, rows: list[Row]) -> list[Figure]:
    """The figures of a report, from its own rows and with its verdicts' intervals."""
    titles = {key: data.study.axes[name].title or name for name, key in axis_keys(data.study).items()}
    return all_figures(_with_verdicts(from_rows(rows, list(rows[0]) if rows else [], titles), data))


def _with_verdicts(plot: PlotData, data: ReportData) -> PlotData:
    differences: dict[str, list[Difference]] = {}
    alphas: dict[str, float] = {}
    for stage in data.stages:
        alpha = getattr(stage.stage.promotion, "alpha", None)
        if alpha is not None:
            alphas[stage.name] = alpha
        for arm in stage.verdict.ranking if stage.verdict else ():
            if arm.difference is not None and arm.interval is not None:
                found = Difference(arm.variant, arm.difference, *arm.interval, p=arm.p)
                differences.setdefault(stage.name, []).append(found)
    planned = (data.plan or {}).get("usd")
    return replace(
        plot,
        metrics={stage.name: stage.stage.promotion.metric for stage in data.stages},
        differences=differences,
        alphas=alphas,
        spending=_spending(data),
        planned_usd=planned if isinstance(planned, int | float) else None,
        limit_usd=data.study.budget.usd,
    )


def _spending(data: ReportData) -> list[tuple[str, float]]:
    """What was paid, in the order in which the ledger has it; trials that it does not name come as the stages have
    them."""
    costs: Mapping[str, float] = {
        t.key.name: t.result.cost_usd or 0.0 for t in data.trials if t.result and not t.reused_from
    }
    paid: dict[str, float] = {}
    for entry in data.ledger:
        if entry.kind == "trial_ended" and entry.key in costs:
            paid[entry.key] = costs[entry.key]
        elif entry.kind in ("gate", "evaluation") and entry.data.get("cost_usd"):
            paid[f"{entry.kind} {entry.key}"] = float(entry.data["cost_usd"])
    return list({**paid, **{name: cost for name, cost in costs.items() if name not in paid}}.items())


def _apart(rows: list[Row]) -> list[Row]:
    """Rows of several runs with the run in their stage's name, so that no figure mixes two runs."""
    runs = list(dict.fromkeys(row.get("run_id", "") for row in rows))
    if len(runs) < 2:
        return rows
    return [row | {"stage": f"{row.get('stage', '')} {row.get('run_id', '')[-8:]}".strip()} for row in rows]


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
