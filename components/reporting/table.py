"""What a report is made of: sections of tables, figures and texts; and how numbers are written in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Mark = Literal["", "winner", "baseline", "lost", "total"]


@dataclass(frozen=True)
class Column:
    """A column's heading and how its cells are set."""

    title: str
    number: bool = False
    """Right-aligned, digits of one width."""
    wide: bool = False
    """Prose that may wrap; other columns keep a line."""
    words: str = ""
    """The heading spelt out, shown on hover."""


def text(title: str, words: str = "") -> Column:
    """A column of short text."""
    return Column(title, words=words)


def prose(title: str) -> Column:
    """A column of sentences."""
    return Column(title, wide=True)


def number(title: str, words: str = "") -> Column:
    """A column of figures."""
    return Column(title, number=True, words=words)


@dataclass(frozen=True)
class Line:
    """A row and what marks it."""

    cells: tuple[str, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A titled table; its first column is the row's heading. The page, the summary and the console render the same."""

    kind: ClassVar[str] = "table"
    name: str
    """Its identifier in the page."""
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    fold: bool = False
    """Long: the page shows it on request."""

    def __bool__(self) -> bool:
        return bool(self.lines)


@dataclass(frozen=True)
class Figure:
    """A finished plot."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    """What to see, and what was left out."""
    svg: str
    stage: str = ""
    """The stage it belongs to; empty for the whole run."""


@dataclass(frozen=True)
class Gallery:
    """Figures side by side."""

    kind: ClassVar[str] = "gallery"
    figures: tuple[Figure, ...]

    def __bool__(self) -> bool:
        return bool(self.figures)


@dataclass(frozen=True)
class Code:
    """Text as it is: a command, a log, the study."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    fold: bool = False


@dataclass(frozen=True)
class Bullets:
    """Sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.items)


Block = Table | Gallery | Code | Bullets


@dataclass(frozen=True)
class Section:
    """A part of the report; one without blocks is left out."""

    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Headline:
    """What stands at the top."""

    tone: Literal["proven", "candidate", "stopped", "open"]
    badge: str
    sentence: str
    """The verdict."""
    detail: str
    """The numbers it rests on."""
    facts: tuple[tuple[str, str], ...] = ()
    """(what, figure) beside it."""


# Number formats. results.csv and the page call the same functions: a number on the page is found in the CSV as it is.

MISSING = "—"
"""What the page shows where nothing was measured. The CSV leaves the cell empty."""


def loss(value: float | None) -> str:
    """Nats per token, four decimals: a tenth of the usual spread over seeds."""
    return _fixed(value, 4)


def bits_per_byte(value: float | None) -> str:
    """Bits per UTF-8 byte, four decimals."""
    return _fixed(value, 4)


def perplexity(value: float | None) -> str:
    """Two decimals; scientific from a million on, where only the order of magnitude means anything."""
    if value is not None and math.isfinite(value) and value >= 1e6:
        return f"{value:.2e}"
    return _fixed(value, 2)


def of_metric(metric: str, value: float | None) -> str:
    """A value of a ranking's metric: perplexities by two decimals, losses and bits per byte by four."""
    return perplexity(value) if metric.endswith("perplexity") else loss(value)


def decimals_of(metric: str) -> int:
    """Decimals of the metric's values and differences."""
    return 2 if metric.endswith("perplexity") else 4


def seconds(value: float | None) -> str:
    """Seconds, one decimal, without thousands separators so that the text is the CSV's."""
    return _fixed(value, 1)


def cost(value: float | None) -> str:
    """US dollars without the sign: cents, and four decimals below a dollar (a smoke trial costs less than a cent)."""
    return _fixed(value, 2 if value is not None and (abs(value) >= 1 or value == 0) else 4)


def usd(value: float | None) -> str:
    """A sum of US dollars with the sign: cents, and four decimals where cents would say nothing."""
    decimals = 2 if value is not None and (value == 0 or abs(value) >= 0.095) else 4
    text = _fixed(value, decimals)
    return text and f"${text}"


def count(value: float | None) -> str:
    """A whole number with thousands separators, for the page only."""
    return "" if value is None else f"{value:,.0f}"


def whole(value: float | None) -> str:
    """A whole number as digits."""
    return _fixed(value, 0)


def plain(value: object) -> str:
    """The value as Python writes it."""
    return "" if value is None else str(value)


def exact(value: float | None) -> str:
    """Every digit of the float, so that a value can be recomputed."""
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference with its sign, with a true minus."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(bounds: tuple[float, float] | None, decimals: int = 4) -> str:
    """`−0.0210 to −0.0040`."""
    return "" if bounds is None else f"{signed(bounds[0], decimals)} to {signed(bounds[1], decimals)}"


def p_value(value: float | None) -> str:
    """Two significant digits, and a bound where the test is far beyond doubt."""
    if value is None or not math.isfinite(value):
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def axis_value(value: object) -> str:
    """A value of an axis: numbers without trailing noise, everything else as it is written in the study."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _fixed(value: float | None, decimals: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def figure(field: str, value: Any) -> str:
    """A field of an evaluation as the page and results.csv write it: decimals by what its name says it is."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if "loss" in field or "bits_per" in field or field.startswith("smallbench_"):
        return f"{value:.4f}"
    if "perplexity" in field or field.endswith("_ms"):
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def is_quality(field: str) -> bool:
    """Losses, perplexities and bits per byte of a split."""
    return field.endswith(("_loss", "_perplexity", "_bits_per_byte"))


def is_cost(field: str) -> bool:
    """Times, speeds and memory."""
    return field.endswith(("_ms", "_tokens_per_second", "_mb", "_seconds"))
