"""A corpus: where its text comes from, how it is split, and what identifies it. Nothing here is tokenised.

A corpus whose files name their splits keeps them. Any other is split by whole documents, interleaved over its length:
each document goes to the split that is furthest behind its share of the documents. Counting documents and not bytes
keeps their lengths alike in all splits: by bytes, a small split would fill up with short ones. A split that is missing
beside a named training file is taken from the training documents.

The kinds of corpora are the subclasses of `CorpusKind` in the modules of `data.corpora`: a new kind is one file there.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from podium.trainer.builtin.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from podium.trainer.builtin.data.sources import Document, Source
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.section import Count, Section

DOCUMENTS_VERSION = 1
"""Raised when the same corpus would give other documents or splits."""
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


class CorpusConfig(Section):
    """Which text, and how it is split. Which fields a source takes, its kind says."""

    source: str
    """The name of a kind."""
    path: str | None = None
    """files: a file, a folder or a glob; s3: s3://bucket/prefix; wikitext-2: a folder with its files, else the hub;
    fineweb: a folder or s3://bucket/prefix with shards, else the hub."""
    shards: int | None = Field(default=None, gt=0)
    """fineweb: training shards that are taken, 9 (900M tokens) of the hub's by default and all of a folder's."""
    text_field: str = "text"
    """Field of a .jsonl file that holds a document's text."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents for validation, where the corpus does not name its splits."""
    test_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    max_bytes: Count | None = Field(default=None, gt=0)
    """Cap on the text that is not a named validation or test split, thinned evenly; of `builtin`, 8M by default."""
    domains: dict[str, str] | None = None
    """mixture: domain → where its text is: a file, folder or glob, s3://bucket/prefix, or for code, math and prose also
    `hub` (CodeParrot, MathQA and C4) or `demo` (what a Python installation carries, and worked mathematics)."""
    size_mb: float = Field(default=10.0, gt=0)
    """mixture: megabytes of text a domain, before it is split."""
    revision: str = WIKITEXT_REVISION
    """wikitext-2 from the hub: the commit of Salesforce/wikitext."""

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, source: Any) -> Any:
        names = [kind.source for kind in corpus_kinds()]
        if source not in names:
            quoted = [repr(name) for name in names]
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(quoted[:-1])} or {quoted[-1]}"})
        return source

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.kind.check(self)
        return self

    @property
    def kind(self) -> CorpusKind:
        """The kind of its source."""
        return next(kind for kind in corpus_kinds() if kind.source == self.source)

    @property
    def domain_bytes(self) -> int:
        """mixture: the most bytes of a domain's text."""
        return round(self.size_mb * 1_000_000)

    @property
    def description(self) -> str:
        """The corpus in a few words."""
        return self.kind.describe(self)

    @property
    def cap(self) -> int | None:
        """`max_bytes` with the kind's default filled in."""
        return self.kind.default_bytes if self.max_bytes is None else self.max_bytes


# Kinds of corpora.


class TextCorpus(Protocol):
    """A corpus found and identified; its documents are read as they are asked for."""

    @property
    def config(self) -> CorpusConfig:
        """What was opened."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains into which its shards are divided."""

    @property
    def fingerprint(self) -> str:
        """Identity of text and splits: no path and no name."""

    @property
    def bytes(self) -> int:
        """About how many bytes `documents` will yield."""

    def documents(self) -> Iterator[tuple[str, Document]]:
        """(split, document) in a fixed order."""


class TokenisedCorpus(Protocol):
    """Shards that exist already."""

    @property
    def fingerprint(self) -> str:
        """Identity of the tokens: no path and no name."""

    def manifest(self, vocab_size: int) -> Manifest:
        """The manifest of a dataset that names these shards; fingerprint and files are still open."""


class CorpusKind(ABC):
    """A kind of corpus. Defining a subclass with a `source` registers it."""

    source: ClassVar[str]
    """Its name in `CorpusConfig.source`."""
    position: ClassVar[int] = 100
    """Its place among the kinds, in messages and when the command line's form is read."""
    is_fallback: ClassVar[bool] = False
    """Whether it takes every text of the command line that no other kind takes."""
    is_tokenised: ClassVar[bool] = False
    """Whether it consists of shards: it is opened by `shards` and not by `open`."""
    default_bytes: ClassVar[int | None] = None
    """`max_bytes` where that is not given."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "source" in vars(cls):
            _KINDS[cls.source] = cls()

    @abstractmethod
    def parse(self, text: str) -> CorpusConfig | None:
        """The corpus that a text of the command line means; None for a text of another kind."""

    def check(self, config: CorpusConfig) -> None:
        """Raise ValueError for fields that the kind does not take, or needs and does not have."""
        if config.domains:
            raise ValueError(
                f"source 'mixture' has domains and no path, others none, got {config.domains} ({config.source})"
            )
        if config.shards is not None:
            raise ValueError(f"shards are fineweb's, got shards: {config.shards} with source {config.source!r}")

    def describe(self, config: CorpusConfig) -> str:
        """The corpus in a few words."""
        return str(config.path)

    def open(self, config: CorpusConfig) -> TextCorpus:
        """Find the corpus. Raises DataError where it is missing, empty or not text."""
        raise DataError(f"corpus {config.description!r} has no text: it is tokenised already")

    def shards(self, config: CorpusConfig) -> TokenisedCorpus:
        """Find the shards of a kind that `is_tokenised`. Raises DataError where they are missing."""
        raise DataError(f"corpus {config.description!r} has no shards: it is text")

    def fingerprint(self, config: CorpusConfig) -> str:
        """Identity of the content. Raises DataError where the corpus is missing, empty or not text."""
        return (self.shards(config) if self.is_tokenised else self.open(config)).fingerprint

    def is_on_hub(self, config: CorpusConfig) -> bool:
        """Whether its text must be fetched from the hub before anything is known of it."""
        return False

    def tokens(self, config: CorpusConfig) -> int | None:
        """About how many tokens it has, where that is known without opening it."""
        return None

    def argument(self, config: CorpusConfig) -> str | None:
        """What `--data` must be given to mean this corpus again; None where that can't be said."""
        return None


_KINDS: dict[str, CorpusKind] = {}


def corpus_kinds() -> list[CorpusKind]:
    """Every kind, in the order of their positions."""
    _import_kinds()
    return sorted(_KINDS.values(), key=lambda kind: (kind.position, kind.source))


@cache
def _import_kinds() -> None:
    # by their names: each of these modules imports this one
    package = import_module("podium.trainer.builtin.data.corpora")
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)


def parse_corpus(text: str) -> CorpusConfig:
    """The form of the command line: `builtin`, `wikitext-2`, `s3://bucket/prefix`, or a file, folder or glob.

    `fineweb` is GPT-2 tokens from the hub, `fineweb:PLACE` such shards in a folder or in S3. `mixture` is code, math
    and prose from the hub, `demo` the same without one, `mixture:FOLDER` a domain for each file or folder in there.
    """
    for kind in sorted(corpus_kinds(), key=lambda kind: kind.is_fallback):
        config = kind.parse(text)
        if config is not None:
            return config
    raise AssertionError("unreachable: a kind takes every other text")


def open_corpus(config: CorpusConfig) -> TextCorpus:
    """Find the corpus. Raises DataError where it is missing, empty or not text."""
    return config.kind.open(config)


def corpus_fingerprint(config: CorpusConfig) -> str:
    """Identity of a corpus: of its content, or of its pinned revision on the hub, which is not fetched for this.

    Raises DataError where the corpus is missing, empty or not text.
    """
    return config.kind.fingerprint(config)


# A corpus of text.


@dataclass(frozen=True)
class Corpus:
    """A corpus found and identified; its documents are read as they are asked for."""

    config: CorpusConfig
    sources: list[Source]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains into which its shards are divided: none."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Identity of text and splits: content, roles and the settings that split it; no path and no name."""
        identity = {
            "version": DOCUMENTS_VERSION,
            "sources": [[source.role, source.digest] for source in self.sources],
            "fractions": [self.config.validation_fraction, self.config.test_fraction],
            "max_bytes": self.config.cap,
            "text_field": self.config.text_field,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def bytes(self) -> int:
        """About how many bytes `documents` will yield."""
        ours = sum(source.bytes for source in self.sources if _is_ours(source))
        named = sum(source.bytes for source in self.sources) - ours
        return named + min(ours, self.config.cap or ours)

    def documents(self) -> Iterator[tuple[str, Document]]:
        """(split, document) in a fixed order. Raises DataError where a text turns out to be unreadable."""
        named = {source.role for source in self.sources if source.role}
        shares = {VALIDATION: self.config.validation_fraction, TEST: self.config.test_fraction}
        shares = {split: share for split, share in shares.items() if split not in named}
        shares = {TRAIN: 1 - sum(shares.values()), **shares}
        thinning = _Thinning(self.config.cap, sum(source.bytes for source in self.sources if _is_ours(source)))
        given = dict.fromkeys(shares, 0)
        total = 0
        for source in self.sources:
            for document in source.documents():
                if not _is_ours(source):
                    assert source.role is not None
                    yield source.role, document
                elif thinning.keeps(document.bytes):
                    total += 1
                    behind = max(shares, key=lambda split: shares[split] * total - given[split])
                    given[behind] += 1
                    yield behind, document


class _Thinning:
    """Keeps documents evenly over the corpus, by count for the reason above, until their bytes reach the cap."""

    def __init__(self, cap: int | None, total: int) -> None:
        self._cap = cap
        self._share = 1.0 if cap is None or total <= cap else cap / total
        self._seen = self._kept = 0

    def keeps(self, size: int) -> bool:
        self._seen += 1
        if int(self._seen * self._share) == int((self._seen - 1) * self._share):
            return False
        if self._cap is not None and self._kept + size > self._cap:
            return False
        self._kept += size
        return True


def _is_ours(source: Source) -> bool:
    """Whether we split or thin it: not a validation or test split that the corpus names."""
    return source.role in (None, TRAIN)
