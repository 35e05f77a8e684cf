"""summary.md: the report as Markdown, verdict first, for a pull request, a mail or a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from podium.components.reporting.document import Block, Bullets, Code, Gallery, Section
from podium.components.reporting.headline import Headline
from podium.components.reporting.model import ReportData
from podium.components.reporting.numbers import MISSING
from podium.components.reporting.table import Table

MAX_ROWS = 60
"""Rows of a table; all of them are in results.csv."""


def summary(data: ReportData, head: Headline, parts: Sequence[Section]) -> str:
    """The whole file."""
    lines = [
        f"# {data.study.title or data.study.name}",
        "",
        f"**{_inline(head.sentence)}** ({head.badge})",
        "",
        _inline(head.detail),
    ]
    if head.facts:
        lines += ["", " · ".join(f"{what} **{_inline(value)}**" for what, value in head.facts)]
    if data.study.confounds:
        lines += ["", "Read with it:", "", *(f"- {_inline(item)}" for item in data.study.confounds)]
    lines += ["", f"*{_inline(data.study.question)}*"]
    for part in parts:
        lines += ["", f"## {part.title}"]
        if part.lead:
            lines += ["", _inline(part.lead)]
        for block in part.blocks:
            lines += _block(block)
    lines += [
        "",
        f"Run `{data.run_id}`. The page with every figure is index.html, a row a trial is in results.csv.",
        "",
    ]
    return "\n".join(lines)


def table_markdown(table: Table) -> list[str]:
    """A table in GitHub's Markdown."""
    head = "| " + " | ".join(_inline(column.title) for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|"
    rows = [f"| {' | '.join(_inline(cell) or MISSING for cell in line.cells)} |" for line in table.lines[:MAX_ROWS]]
    lines = ["", head, rule, *rows]
    if len(table.lines) > MAX_ROWS:
        lines += ["", f"{len(table.lines) - MAX_ROWS} more rows: results.csv."]
    if table.note:
        lines += ["", _inline(table.note)]
    return lines


def _block(block: Block) -> list[str]:
    if isinstance(block, Table):
        return [*(("", f"### {block.title}") if block.title else ()), *table_markdown(block)]
    if isinstance(block, Bullets):
        return ["", *(f"- {_inline(item)}" for item in block.items)]
    if isinstance(block, Gallery):
        return ["", *(f"![{figure.title}](figures/{figure.name}.svg)" for figure in block.figures)]
    assert isinstance(block, Code)
    if block.fold:
        return []
    return ["", f"### {block.title}", "", "```", block.text, "```"]


def _inline(text: str) -> str:
    """Text in one line whose bars and stars Markdown takes as they are."""
    for sign in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
