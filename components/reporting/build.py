"""Build a run's report in its store: index.html, summary.md, results.csv, figures/ and the files of its layout."""

from __future__ import annotations

from dataclasses import dataclass, field

from podium.components.reporting.document import headline, sections
from podium.components.reporting.from_csv import report_figures
from podium.components.reporting.model import ReportData, collect
from podium.components.reporting.page import page, summary
from podium.components.reporting.results_csv import result_rows, results_csv
from podium.components.reporting.studies.emergence import LAYOUT as EMERGENCE
from podium.components.reporting.studies.emergence import EmergenceReport, add_cells
from podium.components.reporting.studies.param_allocation import phase1_files
from podium.components.reporting.studies.to_target import LAYOUT, TargetReport, with_target_sections
from podium.components.reporting.table import Table
from podium.components.reporting.tables import axis_tables as tables_of_axes
from podium.components.study.run import Run

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
    rows = result_rows(data)
    figures = report_figures(data, rows)
    emergence = EmergenceReport(data) if data.study.layout == EMERGENCE else None
    if emergence is not None:
        add_cells(data, rows)
        figures = [*emergence.figures, *figures]
    to_target = TargetReport(data) if data.study.layout == LAYOUT else None
    if to_target is not None:
        # an axis by itself says little where combinations were tried
        figures = [*to_target.figures, *(each for each in figures if not each.name.startswith("axis-"))]
    head, parts = headline(data), sections(data, rows, figures)
    files = {f"figures/{figure.name}.svg": figure.svg for figure in figures}
    files["results.csv"] = results_csv(data, rows)
    if data.study.layout == "param-allocation":
        files |= phase1_files(data)
    if to_target is not None:
        parts = with_target_sections(parts, to_target.sections())
        files |= to_target.files()
    if emergence is not None:
        head, parts = emergence.headline(head), with_target_sections(parts, emergence.sections())
    files["summary.md"] = summary(data, head, parts)
    files["index.html"] = page(data, head, parts)
    return Report(files)


def build_report(run: Run) -> str:
    """Write the report of a run in any state into its `report/` and return the page's HTML.

    Each file is replaced whole, the page last, and figures that no longer exist are removed; building again without
    news writes the same bytes. Raises StorageError.
    """
    report = render(collect(run))
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
