"""Documents out of text files, read as a stream: WikiText articles, lines of JSON, whole files, or blocks of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from podium.trainer.errors import DataError

MAX_LINE = 1 << 16
"""Characters read at once: a file without line ends must not be held whole."""
MIN_BLOCK, MAX_BLOCK = 1 << 10, 1 << 18
MAX_DOCUMENT = 1 << 24
"""A file longer than this is cut, so that memory stays bounded."""
_HEADING = re.compile(r" ?= (?!= ).*(?<! =) = ?\s*")


@dataclass(frozen=True, slots=True)
class Document:
    """A text that stands alone: the end-of-text token follows it, and no split cuts it."""

    text: str
    domain: str | None = None
    """What kind of text it is, where the corpus says."""

    @property
    def bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


def is_wikitext(path: Path) -> bool:
    """Whether the file begins with a WikiText article: ` = Title = `."""
    with _open(path) as file:
        for line in _lines(file, path):
            if line.strip():
                return bool(_HEADING.fullmatch(line))
    return False


def count_articles(path: Path) -> int:
    """WikiText headings of the first order in the file."""
    with _open(path) as file:
        return sum(1 for line in _lines(file, path) if _HEADING.fullmatch(line))


def read_articles(path: Path) -> Iterator[Document]:
    """The WikiText articles of a file, headings included. Raises DataError where it is not UTF-8."""
    with _open(path) as file:
        yield from articles(_lines(file, path))


def articles(lines: Iterable[str]) -> Iterator[Document]:
    """WikiText articles out of lines with their ends."""
    held: list[str] = []
    for line in lines:
        if held and _HEADING.fullmatch(line):
            yield from _document(held)
            held = []
        held.append(line)
    yield from _document(held)


def read_blocks(path: Path, block: int, domain: str | None = None) -> Iterator[Document]:
    """The file in pieces of at least `block` characters that end at a blank line, or at any line after twice as many.

    Raises DataError where it is not UTF-8.
    """
    held: list[str] = []
    size = 0
    with _open(path) as file:
        for line in _lines(file, path):
            held.append(line)
            size += len(line)
            if size >= block and (line.isspace() or size >= 2 * block):
                yield from _document(held, domain)
                held, size = [], 0
    yield from _document(held, domain)


def read_json_lines(path: Path, text_field: str) -> Iterator[Document]:
    """A document a line: `{text_field: text, "domain": …}`. Raises DataError naming the line that is not one."""
    with _open(path) as file:
        for number, line in enumerate(_whole_lines(file, path), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from None
            text = entry.get(text_field) if isinstance(entry, dict) else None
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: must be an object with a text in the field {text_field!r}")
            domain = entry.get("domain")
            yield from _document([text], domain if isinstance(domain, str) else None)


def _document(parts: list[str], domain: str | None = None) -> Iterator[Document]:
    text = "".join(parts)
    if text and not text.isspace():
        yield Document(text, domain)


def _open(path: Path) -> TextIO:
    # newline="" keeps \r\n as it is: what is counted in bits per byte is the file's own bytes
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    try:
        while line := file.readline(MAX_LINE):
            yield line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text, got a byte that is not: {error.reason}") from None


def _whole_lines(file: TextIO, path: Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text, got a byte that is not: {error.reason}") from None
