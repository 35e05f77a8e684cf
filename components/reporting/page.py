"""index.html: one file with its style and its figures in it. No script, nothing remote: it can be mailed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files

from podium.components.reporting.figures.style import themed
from podium.components.reporting.model import ReportData
from podium.components.reporting.table import (
    MISSING,
    Block,
    Bullets,
    Code,
    Column,
    Figure,
    Gallery,
    Headline,
    Line,
    Section,
    Table,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Even a mistake of ours could load nothing."""

_LONG_NUMBER = re.compile(r"[0-9]{5,}")


def page(data: ReportData, head: Headline, parts: Sequence[Section]) -> str:
    """The whole page."""
    title = data.study.title or data.study.name
    links = "".join(f'<a href="#{escape(part.name)}">{escape(part.title)}</a>' for part in parts)
    body = "\n".join(_section(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}: {escape(head.sentence)}</title>\n<style>\n{_style()}</style>\n</head>\n"
        "<body>\n<main>\n"
        f'{_hero(data, title, head)}\n<nav aria-label="Sections">{links}</nav>\n{body}\n'
        f"<footer>Podium · run {escape(data.run_id)} · results.csv and figures/ lie beside this page</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _hero(data: ReportData, title: str, head: Headline) -> str:
    facts = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in head.facts)
    beside = "".join(f"<li>{escape(item)}</li>" for item in data.study.confounds)
    aside = f"<aside><h2>Read with it</h2><ul>{beside}</ul></aside>" if beside else ""
    return (
        f'<header class="hero {head.tone}">\n<div>\n'
        f'<p class="kicker">{escape(title)} <span class="badge">{escape(head.badge)}</span></p>\n'
        f'<h1>{escape(head.sentence)}</h1>\n<p class="detail">{escape(head.detail)}</p>\n'
        f'<dl>{facts}</dl>\n<p class="question">{escape(data.study.question)}</p>\n</div>\n{aside}</header>'
    )


def _section(part: Section) -> str:
    lead = f'<p class="lead">{escape(part.lead)}</p>' if part.lead else ""
    blocks = "\n".join(_beside(part.blocks))
    return f'<section id="{escape(part.name)}">\n<h2>{escape(part.title)}</h2>\n{lead}\n{blocks}\n</section>'


def _beside(blocks: Sequence[Block]) -> Iterator[str]:
    """The blocks' HTML; a table and a single figure after it stand side by side where there is room."""
    left: Table | None = None
    for block in blocks:
        if left is not None and isinstance(block, Gallery) and len(block.figures) == 1:
            yield f'<div class="beside"><div>{_block(left)}</div>{_block(block)}</div>'
            left = None
            continue
        if left is not None:
            yield _block(left)
        left = block if isinstance(block, Table) and not block.fold else None
        if left is None:
            yield _block(block)
    if left is not None:
        yield _block(left)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return table_html(block)
    if isinstance(block, Gallery):
        return f'<div class="gallery">{"".join(_figure(figure) for figure in block.figures)}</div>'
    if isinstance(block, Bullets):
        return f'<ul class="prose">{"".join(f"<li>{escape(item)}</li>" for item in block.items)}</ul>'
    assert isinstance(block, Code)
    body = f'<pre tabindex="0">{escape(block.text)}</pre>'
    return _folded(block.title, body) if block.fold else f"<h3>{escape(block.title)}</h3>{body}"


def _figure(figure: Figure) -> str:
    return (
        f"<figure><h3>{escape(figure.title)}</h3>{themed(figure.svg)}"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def table_html(table: Table) -> str:
    """A table in a frame that scrolls by itself, so that the page never does."""
    heads = "".join(_head(column) for column in table.columns)
    lines = "\n".join(_line(line, table.columns) for line in table.lines)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    label = escape(table.title or table.name)
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table id="{escape(table.name)}"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>{note}"
    )
    if table.fold:
        return _folded(f"{table.title}, {len(table.lines)} rows", body)
    return f"<h3>{escape(table.title)}</h3>{body}" if table.title else body


def _head(column: Column) -> str:
    words = f' title="{escape(column.words)}"' if column.words else ""
    return f'<th scope="col"{_class(column)}{words}>{escape(column.title)}</th>'


def _line(line: Line, columns: Sequence[Column]) -> str:
    cells = []
    for index, (cell, column) in enumerate(zip(line.cells, columns, strict=True)):
        tag = ("th", ' scope="row"') if index == 0 else ("td", "")
        cells.append(f"<{tag[0]}{tag[1]}{_class(column)}>{_cell(cell, column)}</{tag[0]}>")
    mark = f' class="{line.mark}"' if line.mark else ""
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _cell(cell: str, column: Column) -> str:
    if not cell:
        return "" if column.wide else MISSING
    if column.number and _LONG_NUMBER.fullmatch(cell):
        # groups of three set apart by space alone: who copies or searches the figure finds the CSV's digits
        head = len(cell) % 3 or 3
        groups = (cell[at : at + 3] for at in range(head, len(cell), 3))
        return cell[:head] + "".join(f"<i>{group}</i>" for group in groups)
    return escape(cell)


def _class(column: Column) -> str:
    return ' class="n"' if column.number else ' class="w"' if column.wide else ""


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


@cache
def _style() -> str:
    return files("podium.components.reporting").joinpath("page.css").read_text(encoding="utf-8")


# summary.md: the report as Markdown, verdict first, for a pull request, a mail or a terminal.

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
            lines += _summary_block(block)
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


def _summary_block(block: Block) -> list[str]:
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
