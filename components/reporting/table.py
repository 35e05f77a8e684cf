"""A table as data: the page, the summary and the console render the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """The heading spelt out, for who hovers over it."""


@dataclass(frozen=True)
class Line:
    """A row and what marks it."""

    cells: tuple[str, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A titled table; its first column is the row's heading."""

    name: str
    """Identifier of it in the page."""
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    fold: bool = False
    """Long: the page shows it on request."""

    def __bool__(self) -> bool:
        return bool(self.lines)


def text(title: str, words: str = "") -> Column:
    """A column of short text."""
    return Column(title, words=words)


def prose(title: str) -> Column:
    """A column of sentences."""
    return Column(title, wide=True)


def number(title: str, words: str = "") -> Column:
    """A column of figures."""
    return Column(title, number=True, words=words)
