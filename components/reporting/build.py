"""Build a run's report in its store, or export it: index.html, summary.md, results.csv, figures/, a layout's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from podium.components.reporting.document import headline, sections
from podium.components.reporting.figures.data import plot_data
from podium.components.reporting.figures.gallery import all_figures
from podium.components.reporting.figures.style import themed
from podium.components.reporting.model import ReportData, collect
from podium.components.reporting.results_csv import (
    Row,
    axis_keys,
    columns_of,
    read_csv,
    result_rows,
    results_csv,
    to_csv,
)
from podium.components.reporting.studies import export_layouts, study_report
from podium.components.reporting.table import MISSING, Block, Column, Gallery, Headline, Section, Table
from podium.components.reporting.tables import axis_tables as tables_of_axes
from podium.components.study.run import Run
from podium.trainer.trial.errors import UserError

# Render a report: index.html, one file with its style and figures in it, and summary.md, the same as Markdown.

MAX_ROWS = 60
"""Rows of a table in summary.md; all of them are in results.csv."""

_LONG_NUMBER = re.compile(r"[0-9]{5,}")


def page(data: ReportData, head: Headline, parts: Sequence[Section]) -> str:
    """The whole page. Everything that a study or a trial says is escaped; only the figures' SVG is markup."""
    return _render("page.html.jinja", data, head, parts)


def summary(data: ReportData, head: Headline, parts: Sequence[Section]) -> str:
    """summary.md: verdict first, for a pull request, a mail or a terminal."""
    return _render("summary.md.jinja", data, head, parts)


def _render(template: str, data: ReportData, head: Headline, parts: Sequence[Section]) -> str:
    study = data.study
    title = study.title or study.name
    return (
        _templates().get_template(template).render(title=title, study=study, run_id=data.run_id, head=head, parts=parts)
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("podium.components.reporting"),
        autoescape=select_autoescape(("html.jinja",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": _cell,
        "inline": _inline,
        "rows": _rows,
        "themed": lambda svg: Markup(themed(svg)),  # noqa: S704  matplotlib wrote it, and escaped its texts
    }
    environment.globals |= {"most_rows": MAX_ROWS, "missing": MISSING}
    return environment


def _rows(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks by row: a table and a single figure after it stand side by side where there is room."""
    rows: list[list[Block]] = []
    for block in blocks:
        last = rows[-1][-1] if rows and len(rows[-1]) == 1 else None
        if isinstance(block, Gallery) and len(block.figures) == 1 and isinstance(last, Table) and not last.fold:
            rows[-1].append(block)
        else:
            rows.append([block])
    return rows


def _cell(cell: str, column: Column) -> str:
    if not cell:
        return "" if column.wide else MISSING
    if not (column.number and _LONG_NUMBER.fullmatch(cell)):
        return cell
    # groups of three set apart by space alone: a search or a copy of the number has the digits of results.csv
    head = len(cell) % 3 or 3
    groups = [cell[at : at + 3] for at in range(head, len(cell), 3)]
    return cell[:head] + Markup().join(Markup("<i>{}</i>").format(group) for group in groups)


def _inline(text: str) -> str:
    """Text in one line whose bars and stars Markdown takes as they are."""
    for sign in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


FOLDER = "report"


@dataclass(frozen=True)
class Report:
    """The report's files by name below `report/`; index.html among them."""

    files: dict[str, str] = field(default_factory=dict)

    @property
    def html(self) -> str:
        """The page."""
        return self.files["index.html"]


def render(data: ReportData) -> Report:
    """All files of the report, the same bytes for the same data."""
    study = study_report(data.study.layout)(data)
    cells = study.cells()
    rows = [row | cells.get(row["trial"], {}) for row in result_rows(data)]
    figures = study.figures(all_figures(plot_data(data)))
    head, parts = study.headline(headline(data)), sections(data, rows, figures, study.sections())
    files = {f"figures/{figure.name}.svg": figure.svg for figure in figures}
    files["results.csv"] = results_csv(data, rows)
    files |= study.files()
    files["summary.md"] = summary(data, head, parts)
    files["index.html"] = page(data, head, parts)
    return Report(files)


def build_report(run: Run) -> str:
    """Write the report of a run in any state into its `report/` and return the page's HTML.

    Each file is replaced whole, the page last, and figures that no longer exist are removed; building again without
    news writes the same bytes. Raises StorageError.
    """
    report = render(_collected(run))
    folder = run.storage.child(FOLDER)
    for name, text in report.files.items():
        folder.write_text(name, text)
    for name in folder.list("figures"):
        if name not in report.files:
            folder.delete(name)
    return report.html


def axis_tables(run: Run) -> list[Table]:
    """The comparison table of each axis, for a console."""
    return tables_of_axes(collect(run))


def export(run: Run, layout: str, to: Path) -> list[Path]:
    """Write the run's results into the folder `to`, which is made, as the layout has them; returns the files.

    generic: the report's files, verdicts (JSON and Markdown) and every finalist's evaluation; for the others see the
    classes in `studies/`. Raises UserError for an unknown layout, and for one that is not the study's.
    """
    known = export_layouts()
    if layout not in known:
        raise UserError(f"layout must be one of {', '.join(known)}, got {layout!r}")
    chosen = study_report(layout)
    if not chosen.of_any_study and layout != run.study.layout:
        raise UserError(f"layout {layout!r} is not that of study {run.study.name!r}, which has {run.study.layout!r}")
    data = _collected(run)
    written = []
    for name, content in sorted(chosen(data).exported(run, lambda: render(data).files).items()):
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written


def aggregate(sources: Iterable[Run | Path]) -> str:
    """One CSV with a row for every trial of all runs and results.csv files, their axes side by side."""
    rows: list[Row] = []
    axes: dict[str, None] = {}
    for source in sources:
        if isinstance(source, Path):
            columns, found = read_csv(source.read_text(encoding="utf-8"))
            # a results.csv has its axes between these two columns
            between = columns[columns.index("seed") + 1 : columns.index("trial")] if "trial" in columns else []
        else:
            data = collect(source)
            found, between = result_rows(data), list(axis_keys(data.study).values())
        rows += found
        axes.update(dict.fromkeys(between))
    return to_csv(rows, columns_of(rows, axes))


def _collected(run: Run) -> ReportData:
    return collect(run, logs=study_report(run.study.layout).reads_logs)
