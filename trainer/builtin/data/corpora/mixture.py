"""A corpus of several domains: each is found, capped and split for itself, and every document carries its domain."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

from podium.trainer.builtin.data.corpus import DOCUMENTS_VERSION, Corpus, CorpusConfig, CorpusKind
from podium.trainer.builtin.data.manifest import default_cache
from podium.trainer.builtin.data.sources import Document, Source, builtin_sources, file_sources, s3_sources
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.process import remove_dead_scratch, scratch_name

# The three domains' texts from the Hugging Face hub: as much as is asked for, fetched once into the user's cache.
#
# What is fetched becomes a file of JSON lines, so that from then on the corpus is known by its content and needs no
# hub.


@dataclass(frozen=True)
class HubText:
    """A dataset of the hub, and which of its fields make a document."""

    repository: str
    fields: tuple[str, ...]
    """Joined by line breaks, each under its name where there are several."""
    name: str | None = None
    revision: str | None = None
    """Branch or commit; None: the default branch as it is when it is fetched."""


HUB_TEXTS = {
    "code": HubText("codeparrot/codeparrot-clean", ("content",)),
    # the dataset itself is a script, which `datasets` does not run any more; the hub converts it to tables
    "math": HubText("allenai/math_qa", ("Problem", "Rationale"), revision="refs/convert/parquet"),
    "prose": HubText("allenai/c4", ("text",), name="en"),
}
"""Domain → its text: CodeParrot, MathQA and C4."""


def fetch_hub_texts(domain: str, size: int) -> Path:
    """A .jsonl of the first `size` bytes of a domain's documents. Raises DataError where they can't be had."""
    wanted = HUB_TEXTS[domain]
    folder = default_cache() / "corpora" / "hub"
    path = folder / f"{wanted.repository.replace('/', '--')}-{size}.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    remove_dead_scratch(folder)
    temp = folder / scratch_name(path.name)
    try:
        with temp.open("w", encoding="utf-8") as file:
            for text in _documents(domain, wanted, size):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    return path


def _documents(domain: str, wanted: HubText, size: int) -> Iterator[str]:
    instead = f"give a file, a folder or s3://… for {domain}, or demo"
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"domain {domain!r} from the hub needs the 'datasets' extra (podium[datasets]); {instead}"
        ) from None
    datasets.disable_progress_bars()
    fetched = 0
    try:
        rows = datasets.load_dataset(
            wanted.repository, wanted.name, split="train", streaming=True, revision=wanted.revision
        )
        for row in rows:
            text = _text(row, wanted.fields)
            fetched += len(text.encode())
            yield text
            if fetched >= size:
                return
    except Exception as error:  # noqa: BLE001  the library raises errors of five others', none with a common base
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"domain {domain!r}: {wanted.repository} can't be fetched from the hub ({first}); {instead}"
        ) from None


def _text(row: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    if len(fields) == 1:
        return str(row[fields[0]])
    return "\n".join(f"{field}: {row[field]}" for field in fields)


# Mathematics for the demo corpus: worked arithmetic and algebra, the same text for the same size on every machine.

ARITHMETIC_VERSION = 1
"""Raised when the text of the same size would be another one."""
ARITHMETIC_SEED = 20_240_117
PROBLEMS = 6
"""Problems of one document."""

_NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Farah", "Goran", "Hana")
_THINGS = ("apples", "books", "coins", "stamps", "marbles", "tickets", "pencils", "shells")


def worksheets(size: int) -> Iterator[Document]:
    """Documents of about 1 kB with worked problems, until they have `size` bytes together."""
    draw = _Draw()
    made = number = 0
    while made < size:
        number += 1
        problems = (f"\nProblem {n + 1}. {_KINDS[draw.below(len(_KINDS))](draw)}\n" for n in range(PROBLEMS))
        document = Document(f"Worksheet {number}\n{''.join(problems)}", "math")
        made += document.bytes
        yield document


class _Draw:
    """Whole numbers. From `Random.random`, whose stream Python promises never to change."""

    def __init__(self) -> None:
        self._random = random.Random(ARITHMETIC_SEED)  # noqa: S311  no secret

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)


def _sum(draw: _Draw) -> str:
    a, b, c = draw.between(12, 999), draw.between(12, 999), draw.between(2, 99)
    return f"Compute {a} + {b} - {c}.\n{a} + {b} = {a + b}.\n{a + b} - {c} = {a + b - c}.\nAnswer: {a + b - c}."


def _product(draw: _Draw) -> str:
    a, b = draw.between(12, 99), draw.between(12, 99)
    tens, ones = b // 10 * 10, b % 10
    return (
        f"Compute {a} * {b}.\n{a} * {b} = {a} * {tens} + {a} * {ones}.\n{a} * {tens} = {a * tens}.\n"
        f"{a} * {ones} = {a * ones}.\n{a * tens} + {a * ones} = {a * b}.\nAnswer: {a * b}."
    )


def _division(draw: _Draw) -> str:
    b, q = draw.between(3, 29), draw.between(3, 60)
    r = draw.below(b)
    a = b * q + r
    return (
        f"Divide {a} by {b}, with remainder.\n{b} * {q} = {b * q}.\n{a} - {b * q} = {r}, which is less than {b}.\n"
        f"Answer: quotient {q}, remainder {r}."
    )


def _fraction(draw: _Draw) -> str:
    a, b, c, d = draw.between(1, 9), draw.between(2, 12), draw.between(1, 9), draw.between(2, 12)
    top, bottom = a * d + c * b, b * d
    divisor = gcd(top, bottom)
    return (
        f"Add the fractions {a}/{b} + {c}/{d}.\nThe common denominator is {b} * {d} = {bottom}.\n"
        f"{a}/{b} = {a * d}/{bottom} and {c}/{d} = {c * b}/{bottom}.\nThe sum is {top}/{bottom}.\n"
        f"Both parts divide by {divisor}.\nAnswer: {top // divisor}/{bottom // divisor}."
    )


def _linear(draw: _Draw) -> str:
    a, x, b = draw.between(2, 15), draw.between(-20, 20), draw.between(1, 60)
    right = a * x + b
    return (
        f"Solve {a}x + {b} = {right} for x.\nSubtract {b} on both sides: {a}x = {right - b}.\n"
        f"Divide both sides by {a}: x = {x}.\nCheck: {a} * {_signed(x)} + {b} = {right}.\nAnswer: x = {x}."
    )


def _system(draw: _Draw) -> str:
    x, y, a = draw.between(-9, 9), draw.between(-9, 9), draw.between(2, 6)
    first, second = x + y, a * x - y
    return (
        f"Solve x + y = {first} and {a}x - y = {second}.\nAdd the two equations: {a + 1}x = {first + second}.\n"
        f"So x = {x}.\nFrom x + y = {first} follows y = {first} - {_signed(x)} = {y}.\nAnswer: x = {x}, y = {y}."
    )


def _quadratic(draw: _Draw) -> str:
    p, q = draw.between(1, 9), draw.between(1, 9)
    return (
        f"Factor x^2 - {p + q}x + {p * q}.\nTwo numbers with sum {p + q} and product {p * q} are {p} and {q}.\n"
        f"So x^2 - {p + q}x + {p * q} = (x - {p})(x - {q}).\nAnswer: the roots are x = {p} and x = {q}."
    )


def _square(draw: _Draw) -> str:
    a, b = draw.between(2, 9), draw.between(1, 12)
    return (
        f"Expand ({a}x + {b})^2.\n({a}x)^2 = {a * a}x^2.\n2 * {a}x * {b} = {2 * a * b}x.\n{b}^2 = {b * b}.\n"
        f"Answer: {a * a}x^2 + {2 * a * b}x + {b * b}."
    )


def _percent(draw: _Draw) -> str:
    rate, base = 5 * draw.between(1, 19), 20 * draw.between(2, 60)
    part = rate * base // 100
    return (
        f"What is {rate} percent of {base}?\n1 percent of {base} is {base}/100.\n"
        f"{rate} * {base} / 100 = {rate * base} / 100 = {part}.\nAnswer: {part}."
    )


def _story(draw: _Draw) -> str:
    name, thing = _NAMES[draw.below(len(_NAMES))], _THINGS[draw.below(len(_THINGS))]
    boxes, each, given = draw.between(3, 15), draw.between(4, 25), draw.between(1, 11)
    total = boxes * each
    return (
        f"{name} has {boxes} boxes with {each} {thing} in each and gives {given} {thing} away. How many are left?\n"
        f"In all boxes there are {boxes} * {each} = {total} {thing}.\n{total} - {given} = {total - given}.\n"
        f"Answer: {total - given} {thing}."
    )


def _progression(draw: _Draw) -> str:
    first, step, n = draw.between(1, 20), draw.between(2, 9), draw.between(5, 20)
    last = first + (n - 1) * step
    return (
        f"Add the first {n} terms of {first}, {first + step}, {first + 2 * step}, ...\n"
        f"The last term is {first} + {n - 1} * {step} = {last}.\n"
        f"The sum is {n} * ({first} + {last}) / 2 = {n * (first + last)} / 2.\nAnswer: {n * (first + last) // 2}."
    )


def _signed(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"


_KINDS: tuple[Callable[[_Draw], str], ...] = (
    _sum, _product, _division, _fraction, _linear, _system, _quadratic, _square, _percent, _story, _progression,
)  # fmt: skip


DEMO, HUB = "demo", "hub"
DOMAINS = ("code", "math", "prose")
"""For which both have text."""
_WORDS = {
    (HUB, "code"): "CodeParrot",
    (HUB, "math"): "MathQA",
    (HUB, "prose"): "C4",
    (DEMO, "code"): "demo: Python's standard library",
    (DEMO, "math"): "demo: generated arithmetic and algebra",
    (DEMO, "prose"): "demo: Python's documentation topics",
}
PIECE = 2048
"""Least characters of a piece of the demo's code and prose; it ends at a blank line."""


@dataclass(frozen=True)
class MixtureCorpus:
    """A corpus a domain, behind the interface of one."""

    config: CorpusConfig
    parts: Mapping[str, Corpus]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains' names, in order."""
        return tuple(self.parts)

    @property
    def fingerprint(self) -> str:
        """Identity of every domain's text and splits, and of their names."""
        identity = [DOCUMENTS_VERSION, [[name, part.fingerprint] for name, part in self.parts.items()]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    @property
    def bytes(self) -> int:
        """About how many bytes `documents` will yield."""
        return sum(part.bytes for part in self.parts.values())

    def documents(self) -> Iterator[tuple[str, Document]]:
        """(split, document), domain by domain: whole texts are split before anything is packed into sequences."""
        for name, part in self.parts.items():
            for split, document in part.documents():
                yield split, replace(document, domain=name)


class MixtureKind(CorpusKind):
    """Several domains, each from a place of its own."""

    source = "mixture"
    position = 4

    def parse(self, text: str) -> CorpusConfig | None:
        """`mixture` is code, math and prose from the hub, `demo` the same without one, `mixture:FOLDER` a folder's."""
        if text in ("mixture", DEMO):
            return CorpusConfig(source="mixture", domains=dict.fromkeys(DOMAINS, HUB if text == "mixture" else DEMO))
        if text.startswith("mixture:"):
            return CorpusConfig(
                source="mixture", domains=domains_of_folder(os.path.abspath(text.removeprefix("mixture:")))
            )
        return None

    def check(self, config: CorpusConfig) -> None:
        """Domains and no path."""
        if not config.domains or config.path is not None:
            raise ValueError(
                f"source 'mixture' has domains and no path, others none, got {config.domains} ({config.source})"
            )
        for name, where in config.domains.items():
            if not re.fullmatch(r"[a-z0-9]+", name):
                raise ValueError(f"domains must have names of lower-case letters and digits, got {name!r}")
            if where in (HUB, DEMO) and name not in DOMAINS:
                raise ValueError(f"{where!r} has text for code, math and prose, got {name!r}")
        super().check(config.model_copy(update={"domains": None}))

    def describe(self, config: CorpusConfig) -> str:
        """Every domain and where it comes from."""
        domains = (config.domains or {}).items()
        parts = ", ".join(f"{name} {_WORDS.get((where, name), where)}" for name, where in domains)
        return f"mixture of {parts}; at most {config.size_mb:g} MB each"

    def open(self, config: CorpusConfig) -> MixtureCorpus:
        """Find every domain's text. Raises DataError for one that is missing, empty or not text."""
        assert config.domains is not None
        size = config.domain_bytes
        parts = {}
        for name, where in config.domains.items():
            part = CorpusConfig(
                source="files",
                path=where,
                text_field=config.text_field,
                validation_fraction=config.validation_fraction,
                test_fraction=config.test_fraction,
                max_bytes=size,
            )
            parts[name] = Corpus(part, _sources(name, where, size, config.text_field))
        return MixtureCorpus(config, parts)


def domains_of_folder(path: str) -> dict[str, str]:
    """Domain → its files, from a folder: each file or folder in it is the domain of its name. Raises DataError."""
    folder = Path(path)
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    names = [entry.name.partition(".")[0] for entry in found]
    if len(found) < 2 or len(set(names)) != len(names):
        raise DataError(
            f"mixture {path!r}: must be a folder with a file or a folder of texts for each domain, such as code.jsonl, "
            f"math.txt and prose/, got {', '.join(entry.name for entry in found) or 'none'}"
        )
    return {name: str(entry) for name, entry in zip(names, found, strict=True)}


def _sources(domain: str, where: str, size: int, text_field: str) -> list[Source]:
    if where == HUB:
        return file_sources(str(fetch_hub_texts(domain, size)), "text")
    if where == DEMO and domain == "math":
        return [_worksheets(size)]
    if where == DEMO:
        return [_in_pieces(source) for source in builtin_sources() if next(source.documents()).domain == domain]
    if where.startswith("s3://"):
        return s3_sources(where, text_field)
    return file_sources(where, text_field)


def _in_pieces(source: Source) -> Source:
    """The source's documents cut at blank lines: whole modules differ so much in length that a split by documents would
    leave a small validation split with hardly anything of a domain."""

    def pieces() -> Iterator[Document]:
        for document in source.documents():
            held: list[str] = []
            size = 0
            for line in document.text.splitlines(keepends=True):
                held.append(line)
                size += len(line)
                if size >= PIECE and line.isspace():
                    yield Document("".join(held))
                    held, size = [], 0
            if not "".join(held).isspace() and held:
                yield Document("".join(held))

    return replace(source, documents=pieces)


def _worksheets(size: int) -> Source:
    identity = f"arithmetic {ARITHMETIC_VERSION} {ARITHMETIC_SEED} {size}"
    return Source(None, size, hashlib.sha256(identity.encode()).hexdigest(), lambda: worksheets(size))
