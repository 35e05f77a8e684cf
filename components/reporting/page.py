"""Render a report: index.html, one file with its style and figures in it, and summary.md, the same as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from podium.components.reporting.figures.style import themed
from podium.components.reporting.model import ReportData
from podium.components.reporting.table import MISSING, Block, Column, Gallery, Headline, Section, Table

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
