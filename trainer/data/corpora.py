"""A corpus: where its text comes from, how it is split, and what identifies it. Nothing here is tokenised.

A corpus whose files name their splits keeps them. Any other is split by whole documents, interleaved over its length:
each document goes to the split that is furthest behind its share of the documents. Counting documents and not bytes
keeps their lengths alike in all splits: by bytes, a small split would fill up with short ones. A split that is missing
beside a named training file is taken from the training documents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.data.documents import Document
from podium.trainer.data.manifest import SPLITS, TEST, TRAIN, VALIDATION
from podium.trainer.data.sources import Source, builtin_sources, file_sources, hub_sources, s3_sources
from podium.trainer.errors import DataError
from podium.trainer.section import Section
from podium.trainer.units import Count

DOCUMENTS_VERSION = 1
"""Raised when the same corpus would give other documents or splits."""
BUILTIN_BYTES = 8_000_000
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


class CorpusConfig(Section):
    """Which text, and how it is split."""

    source: Literal["builtin", "wikitext-2", "files", "s3"]
    path: str | None = None
    """files: a file, a folder or a glob; s3: s3://bucket/prefix; wikitext-2: a folder with its files, else the hub."""
    text_field: str = "text"
    """Field of a .jsonl file that holds a document's text."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents for validation, where the corpus does not name its splits."""
    test_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    max_bytes: Count | None = Field(default=None, gt=0)
    """Cap on the text that is not a named validation or test split, thinned evenly; of `builtin`, 8M by default."""
    revision: str = WIKITEXT_REVISION
    """wikitext-2 from the hub: the commit of Salesforce/wikitext."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source in ("files", "s3") and not self.path:
            raise ValueError(f"source {self.source!r} needs a path, got {self.path!r}")
        if self.source == "s3" and not str(self.path).startswith("s3://"):
            raise ValueError(f"path of source 's3' must be s3://bucket/prefix, got {self.path!r}")
        if self.source == "builtin" and self.path is not None:
            raise ValueError(f"source 'builtin' takes no path, got {self.path!r}")
        return self

    @property
    def description(self) -> str:
        """The corpus in a few words."""
        if self.source == "builtin":
            return "Python's standard library and documentation topics"
        if self.source == "wikitext-2":
            return f"WikiText-2 raw from {self.path or f'the hub at {self.revision[:8]}'}"
        return str(self.path)

    @property
    def cap(self) -> int | None:
        """`max_bytes` with the default of `builtin` filled in."""
        return BUILTIN_BYTES if self.max_bytes is None and self.source == "builtin" else self.max_bytes


def parse_corpus(text: str) -> CorpusConfig:
    """The form of the command line: `builtin`, `wikitext-2`, `s3://bucket/prefix`, or a file, folder or glob."""
    if text == "builtin":
        return CorpusConfig(source="builtin")
    if text == "wikitext-2":
        return CorpusConfig(source="wikitext-2")
    if text.startswith("s3://"):
        return CorpusConfig(source="s3", path=text)
    if not text.strip():
        raise DataError(f"a corpus must be builtin, wikitext-2, a file, a folder, a glob or s3://…, got {text!r}")
    return CorpusConfig(source="files", path=os.path.abspath(os.path.expanduser(text.removeprefix("file://"))))


@dataclass(frozen=True)
class Corpus:
    """A corpus found and identified; its documents are read as they are asked for."""

    config: CorpusConfig
    sources: list[Source]

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


def open_corpus(config: CorpusConfig) -> Corpus:
    """Find the corpus. Raises DataError where it is missing, empty or not text."""
    if config.source == "builtin":
        return Corpus(config, builtin_sources())
    if config.source == "s3":
        assert config.path is not None
        return Corpus(config, s3_sources(config.path, config.text_field))
    if config.source == "wikitext-2" and config.path is None:
        return Corpus(config, hub_sources("Salesforce/wikitext", "wikitext-2-raw-v1", config.revision))
    assert config.path is not None
    need_roles = config.source == "wikitext-2"
    return Corpus(config, file_sources(config.path, config.text_field, need_roles=need_roles))


def corpus_fingerprint(config: CorpusConfig) -> str:
    """Identity of a corpus: of its content, or of its pinned revision on the hub, which is not fetched for this.

    Raises DataError where the corpus is missing, empty or not text.
    """
    if config.source == "wikitext-2" and config.path is None:
        names = [f"Salesforce/wikitext/wikitext-2-raw-v1@{config.revision}/{split}" for split in SPLITS]
        empty = [Source(split, 0, name, lambda: iter(())) for split, name in zip(SPLITS, names, strict=True)]
        return Corpus(config, empty).fingerprint
    return open_corpus(config).fingerprint


def _is_ours(source: Source) -> bool:
    """Whether we split or thin it: not a validation or test split that the corpus names."""
    return source.role in (None, TRAIN)
