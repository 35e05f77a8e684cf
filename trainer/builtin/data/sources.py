"""Where documents come from: local files by their names' roles, the Python installation's own text, the hub."""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TextIO

from podium.trainer.builtin.data.manifest import TEST, TRAIN, VALIDATION, default_cache
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.process import SCRATCH
from podium.trainer.trial.storage import open_storage, split_uri

# Documents out of text files, read as a stream: WikiText articles, lines of JSON, whole files, or blocks of a file.

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


SUFFIXES = frozenset({".txt", ".text", ".raw", ".tokens", ".md", ".rst", ".jsonl", ".py"})
"""What is read of a folder; a file or a glob may have any suffix."""
FEW_FILES = 40
"""Below this, whole files are too coarse to be split: they are cut into blocks."""
FEW_ARTICLES = 20
_ROLES = {
    "train": TRAIN,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
}
_NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
"""Of the standard library: what others installed, tests, and tables of characters."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file's worth of documents."""

    role: str | None
    """The split that its name gives it; None where the corpus names none and is split by us."""
    bytes: int
    digest: str
    """Of the content, and of nothing else: a moved file is the same file."""
    documents: Callable[[], Iterator[Document]]


def file_sources(path: str, text_field: str, *, need_roles: bool = False) -> list[Source]:
    """The sources of a file, a folder or a glob, sorted by path.

    Files whose names say train, valid (validation, val, dev) or test keep these roles, if one of them says train.
    Raises DataError where there are none, or one is empty throughout, binary or not UTF-8.
    """
    files = _find_files(path)
    roles = _roles(files, path, need_roles=need_roles)
    total = sum(file.stat().st_size for file in files)
    if total == 0:
        raise DataError(f"corpus {path!r} is empty: {len(files)} files, 0 bytes")
    block = min(max(total // 200, MIN_BLOCK), MAX_BLOCK) if len(files) < FEW_FILES else MAX_DOCUMENT
    sources = []
    for file, role in zip(files, roles, strict=True):
        read: Callable[[], Iterator[Document]]
        digest = _digest(file)
        if file.suffix == ".jsonl":
            read = partial(read_json_lines, file, text_field)
        elif is_wikitext(file) and (role is not None or count_articles(file) >= FEW_ARTICLES):
            read = partial(read_articles, file)
        else:
            read = partial(read_blocks, file, MAX_BLOCK if role is not None and block < MAX_BLOCK else block)
        sources.append(Source(role, file.stat().st_size, digest, read))
    return sources


def s3_sources(uri: str, text_field: str) -> list[Source]:
    """The sources of an object or of every text below a prefix in S3, fetched once into the user's cache.

    Raises DataError where there is nothing to read, StorageError where S3 can't be reached.
    """
    folder, name = split_uri(uri)
    storage = open_storage(uri)
    keys = [key for key in storage.list() if Path(key).suffix in SUFFIXES]
    if not keys and folder.count("/") >= 2 and folder != "s3:/":
        storage = open_storage(folder)
        keys = [name] if storage.exists(name) else []
    if not keys:
        raise DataError(f"corpus {uri!r}: no object with one of the endings {', '.join(sorted(SUFFIXES))} there")
    stamps = [(key, storage.stamp(key)) for key in keys]
    local = default_cache() / "corpora" / hashlib.sha256(repr((storage.uri, stamps)).encode()).hexdigest()[:16]
    for key in keys:
        if not (local / key).is_file():
            storage.download(key, local / key)
    return file_sources(str(local / keys[0]) if len(keys) == 1 else str(local), text_field)


@cache
def builtin_sources() -> list[Source]:
    """Text that every Python installation carries: the documentation's topics and the library's modules, in order.

    Raises DataError for an installation without its sources.
    """
    sources = [_text_source(text, "prose") for _, text in sorted(_topics().items())]
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(path for pattern in ("*.txt", "*.py") for path in root.rglob(pattern)):
        parts = path.relative_to(root).parts
        if _NOT_PROSE.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):  # a few old modules are Latin-1 by declaration
                continue
            if text.strip():
                sources.append(_text_source(text, "prose" if path.suffix == ".txt" else "code"))
    found = sum(source.bytes for source in sources)
    if found < 1_000_000:
        raise DataError(
            f"corpus 'builtin': this Python installation has only {found} bytes of library sources in {root}; "
            f"give a file, a folder, a glob, s3://bucket/prefix or wikitext-2"
        )
    return sources


def hub_sources(repository: str, name: str, revision: str) -> list[Source]:
    """The splits of a WikiText dataset of the Hugging Face hub, at a pinned revision.

    Raises DataError where the `datasets` library or the hub is not there, saying what else can be given.
    """
    instead = "give a file, a folder (such as one with wiki.train.raw), a glob, s3://bucket/prefix or builtin instead"
    try:
        import datasets
    except ImportError:
        raise DataError(f"corpus {name!r} needs the 'datasets' extra (podium[datasets]); or {instead}") from None
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(repository, name, revision=revision)
    except Exception as error:  # noqa: BLE001  the library raises errors of five others', none with a common base
        first = str(error).strip().partition("\n")[0]
        raise DataError(f"corpus {name!r} can't be fetched from the hub ({first}); {instead}") from None

    def lines(split: str) -> Iterator[str]:
        # The hub's rows have lost the space of an empty line.
        return (row or " \n" for row in loaded[split]["text"])

    def read(split: str) -> Iterator[Document]:
        return articles(lines(split))

    return [
        Source(
            role,
            sum(len(line.encode()) for line in lines(role)),
            f"{repository}/{name}@{revision}/{role}",
            partial(read, role),
        )
        for role in (TRAIN, VALIDATION, TEST)
    ]


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # a packager may leave the documentation out
        return {}
    return dict(topics)


def _text_source(text: str, domain: str) -> Source:
    data = text.encode()
    return Source(None, len(data), hashlib.sha256(data).hexdigest(), lambda: iter([Document(text, domain)]))


def _find_files(path: str) -> Sequence[Path]:
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        files = [file for file in files if not _is_hidden(file.relative_to(place))]
        if not files:
            raise DataError(f"corpus {path!r}: no text in this folder (endings read: {', '.join(sorted(SUFFIXES))})")
        return files
    files = sorted(Path(match) for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not files:
        raise DataError(
            f"corpus {path!r}: no such file, folder or match; "
            f"a corpus must be builtin, wikitext-2, a file, a folder, a glob or s3://bucket/prefix"
        )
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", SCRATCH)) for part in path.parts)


def _roles(files: Sequence[Path], path: str, *, need_roles: bool) -> list[str | None]:
    def role(file: Path) -> str | None:
        found = {_ROLES[word] for word in re.split(r"[^a-z]+", file.name.lower()) if word in _ROLES}
        return found.pop() if len(found) == 1 else None

    roles = [role(file) for file in files]
    if TRAIN in roles and len(files) > 1:
        return [found or TRAIN for found in roles]
    if need_roles or (len(files) > 1 and None not in roles):
        names = ", ".join(file.name for file in files[:5])
        raise DataError(f"corpus {path!r}: no file's name says train, got {names}; one file alone would be split")
    return [None] * len(files)


def _digest(file: Path) -> str:
    """sha256 of a file, refusing on the way what is not UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest = hashlib.sha256()
    try:
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
                if "\0" in decoder.decode(chunk):
                    raise DataError(f"{file}: must be UTF-8 text, got binary data (a zero byte)")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: must be UTF-8 text, got a byte that is not: {error.reason}") from None
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from None
    return digest.hexdigest()
