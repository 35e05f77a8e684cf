"""A corpus of several domains: each is found, capped and split for itself, and every document carries its domain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from podium.trainer.data import arithmetic, hub_texts
from podium.trainer.data.corpora import DOCUMENTS_VERSION, Corpus, CorpusConfig
from podium.trainer.data.documents import Document
from podium.trainer.data.sources import Source, builtin_sources, file_sources, s3_sources
from podium.trainer.errors import DataError

DEMO, HUB = "demo", "hub"
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


def open_mixture(config: CorpusConfig) -> MixtureCorpus:
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
        return file_sources(str(hub_texts.fetch(domain, size)), "text")
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
    identity = f"arithmetic {arithmetic.VERSION} {arithmetic.SEED} {size}"
    return Source(None, size, hashlib.sha256(identity.encode()).hexdigest(), lambda: arithmetic.worksheets(size))
