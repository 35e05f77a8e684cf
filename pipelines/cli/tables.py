"""The report's tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from podium.components.study.run import Run

STYLES = {"winner": "bold green", "baseline": "", "lost": "dim", "total": "bold", "": ""}
"""How a line's mark is shown where there is colour."""


def axis_tables(run: Run, stage: str) -> Iterator[Table]:
    """The comparison table of each axis once the first stage has its verdict; later stages have none of their own."""
    from rich.table import Table
    from rich.text import Text

    from podium.components.reporting.build import axis_tables as report_tables

    if stage != run.stages[0]:
        return
    for made in report_tables(run):
        table = Table(
            title=made.title, caption=made.note, title_justify="left", caption_justify="left", box=None, pad_edge=False
        )
        for column in made.columns:
            table.add_column(column.title, justify="right" if column.number else "left")
        for line in made.lines:
            table.add_row(*(Text(cell) for cell in line.cells), style=STYLES[line.mark])
        yield table
