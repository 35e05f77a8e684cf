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
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from podium.trainer.builtin.data.shards import SPLITS, TEST, TRAIN, VALIDATION
from podium.trainer.builtin.data.sources import Document, Source, builtin_sources, file_sources, hub_sources, s3_sources
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.section import Section
from podium.trainer.trial.units import Count

if TYPE_CHECKING:
    from podium.trainer.builtin.data.mixture import MixtureCorpus


DOCUMENTS_VERSION = 1
"""Raised when the same corpus would give other documents or splits."""
BUILTIN_BYTES = 8_000_000
HUB_SHARDS = 9
"""FineWeb's training shards of 100M tokens that are taken of the hub's by default."""
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


class CorpusConfig(Section):
    """Which text, and how it is split."""

    source: Literal["builtin", "wikitext-2", "files", "s3", "mixture", "fineweb"]
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source in ("files", "s3") and not self.path:
            raise ValueError(f"source {self.source!r} needs a path, got {self.path!r}")
        if self.source == "s3" and not str(self.path).startswith("s3://"):
            raise ValueError(f"path of source 's3' must be s3://bucket/prefix, got {self.path!r}")
        if self.source == "builtin" and self.path is not None:
            raise ValueError(f"source 'builtin' takes no path, got {self.path!r}")
        if (self.source == "mixture") != bool(self.domains) or (self.source == "mixture" and self.path is not None):
            raise ValueError(
                f"source 'mixture' has domains and no path, others none, got {self.domains} ({self.source})"
            )
        for name, where in (self.domains or {}).items():
            if not re.fullmatch(r"[a-z0-9]+", name):
                raise ValueError(f"domains must have names of lower-case letters and digits, got {name!r}")
            if where in ("hub", "demo") and name not in ("code", "math", "prose"):
                raise ValueError(f"{where!r} has text for code, math and prose, got {name!r}")
        if self.shards is not None and self.source != "fineweb":
            raise ValueError(f"shards are fineweb's, got shards: {self.shards} with source {self.source!r}")
        if self.max_bytes is not None and self.source == "fineweb":
            raise ValueError(f"source 'fineweb' is limited by shards, got max_bytes: {self.max_bytes}")
        return self

    @property
    def domain_bytes(self) -> int:
        """mixture: the most bytes of a domain's text."""
        return round(self.size_mb * 1_000_000)

    @property
    def description(self) -> str:
        """The corpus in a few words."""
        if self.source == "builtin":
            return "Python's standard library and documentation topics"
        if self.source == "wikitext-2":
            return f"WikiText-2 raw from {self.path or f'the hub at {self.revision[:8]}'}"
        if self.source == "fineweb":
            return f"FineWeb shards of {self.path or 'the hub'}"
        if self.domains is not None:
            parts = ", ".join(f"{name} {_WORDS.get((where, name), where)}" for name, where in self.domains.items())
            return f"mixture of {parts}; at most {self.size_mb:g} MB each"
        return str(self.path)

    @property
    def cap(self) -> int | None:
        """`max_bytes` with the default of `builtin` filled in."""
        return BUILTIN_BYTES if self.max_bytes is None and self.source == "builtin" else self.max_bytes


_WORDS = {
    ("hub", "code"): "CodeParrot",
    ("hub", "math"): "MathQA",
    ("hub", "prose"): "C4",
    ("demo", "code"): "demo: Python's standard library",
    ("demo", "math"): "demo: generated arithmetic and algebra",
    ("demo", "prose"): "demo: Python's documentation topics",
}
THREE_DOMAINS = ("code", "math", "prose")


def parse_corpus(text: str) -> CorpusConfig:
    """The form of the command line: `builtin`, `wikitext-2`, `s3://bucket/prefix`, or a file, folder or glob.

    `fineweb` is GPT-2 tokens from the hub, `fineweb:PLACE` such shards in a folder or in S3. `mixture` is code, math
    and prose from the hub, `demo` the same without one, `mixture:FOLDER` a domain for each file or folder in there.
    """
    if text in ("mixture", "demo"):
        return CorpusConfig(
            source="mixture", domains=dict.fromkeys(THREE_DOMAINS, "hub" if text == "mixture" else text)
        )
    if text.startswith("mixture:"):
        from podium.trainer.builtin.data.mixture import domains_of_folder  # it imports this module

        return CorpusConfig(source="mixture", domains=domains_of_folder(os.path.abspath(text.removeprefix("mixture:"))))
    if text == "fineweb":
        return CorpusConfig(source="fineweb")
    if text.startswith("fineweb:"):
        path = text.removeprefix("fineweb:")
        return CorpusConfig(source="fineweb", path=path if path.startswith("s3://") else os.path.abspath(path))
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


def open_corpus(config: CorpusConfig) -> Corpus | MixtureCorpus:
    """Find the corpus. Raises DataError where it is missing, empty or not text."""
    if config.source == "mixture":
        from podium.trainer.builtin.data.mixture import open_mixture  # it imports this module

        return open_mixture(config)
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
    if config.source == "fineweb":
        from podium.trainer.builtin.data.fineweb import list_shards  # it imports this module

        return list_shards(config).fingerprint
    if config.source == "wikitext-2" and config.path is None:
        names = [f"Salesforce/wikitext/wikitext-2-raw-v1@{config.revision}/{split}" for split in SPLITS]
        empty = [Source(split, 0, name, lambda: iter(())) for split, name in zip(SPLITS, names, strict=True)]
        return Corpus(config, empty).fingerprint
    return open_corpus(config).fingerprint


def _is_ours(source: Source) -> bool:
    """Whether we split or thin it: not a validation or test split that the corpus names."""
    return source.role in (None, TRAIN)
