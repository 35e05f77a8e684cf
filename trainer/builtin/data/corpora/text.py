"""Corpora that are text: files, S3, WikiText-2, and what every Python installation carries."""

from __future__ import annotations

import os

from podium.trainer.builtin.data.corpus import Corpus, CorpusConfig, CorpusKind
from podium.trainer.builtin.data.manifest import SPLITS
from podium.trainer.builtin.data.sources import Source, builtin_sources, file_sources, hub_sources, s3_sources
from podium.trainer.trial.errors import DataError

WIKITEXT, WIKITEXT_NAME = "Salesforce/wikitext", "wikitext-2-raw-v1"
WIKITEXT_TOKENS = 2_400_000
"""Of all its text, about, by a tokenizer of 16k entries."""


class BuiltinCorpus(CorpusKind):
    """The standard library's modules and the documentation's topics."""

    source = "builtin"
    position = 0
    default_bytes = 8_000_000

    def parse(self, text: str) -> CorpusConfig | None:
        """`builtin`."""
        return CorpusConfig(source="builtin") if text == "builtin" else None

    def check(self, config: CorpusConfig) -> None:
        """No path."""
        if config.path is not None:
            raise ValueError(f"source 'builtin' takes no path, got {config.path!r}")
        super().check(config)

    def describe(self, config: CorpusConfig) -> str:
        """What it is made of."""
        return "Python's standard library and documentation topics"

    def open(self, config: CorpusConfig) -> Corpus:
        """Raises DataError for an installation without its sources."""
        return Corpus(config, builtin_sources())


class WikiTextCorpus(CorpusKind):
    """WikiText-2, from a folder or from the hub at a pinned revision."""

    source = "wikitext-2"
    position = 1

    def parse(self, text: str) -> CorpusConfig | None:
        """`wikitext-2`, from the hub."""
        return CorpusConfig(source="wikitext-2") if text == "wikitext-2" else None

    def describe(self, config: CorpusConfig) -> str:
        """The folder or the revision."""
        return f"WikiText-2 raw from {config.path or f'the hub at {config.revision[:8]}'}"

    def open(self, config: CorpusConfig) -> Corpus:
        """Raises DataError for a folder whose files' names do not say their splits, or without the hub."""
        if config.path is None:
            return Corpus(config, hub_sources(WIKITEXT, WIKITEXT_NAME, config.revision))
        return Corpus(config, file_sources(config.path, config.text_field, need_roles=True))

    def fingerprint(self, config: CorpusConfig) -> str:
        """Of the pinned revision on the hub, which is not fetched for this."""
        if config.path is not None:
            return super().fingerprint(config)
        names = [f"{WIKITEXT}/{WIKITEXT_NAME}@{config.revision}/{split}" for split in SPLITS]
        empty = [Source(split, 0, name, lambda: iter(())) for split, name in zip(SPLITS, names, strict=True)]
        return Corpus(config, empty).fingerprint

    def is_on_hub(self, config: CorpusConfig) -> bool:
        """Without a folder."""
        return config.path is None

    def tokens(self, config: CorpusConfig) -> int | None:
        """Of the whole of it."""
        return WIKITEXT_TOKENS if config.max_bytes is None else None


class S3Corpus(CorpusKind):
    """Texts below a prefix in S3."""

    source = "s3"
    position = 3

    def parse(self, text: str) -> CorpusConfig | None:
        """`s3://bucket/prefix`."""
        return CorpusConfig(source="s3", path=text) if text.startswith("s3://") else None

    def check(self, config: CorpusConfig) -> None:
        """A path, which is in S3."""
        path = _path(config)
        if not path.startswith("s3://"):
            raise ValueError(f"path of source 's3' must be s3://bucket/prefix, got {path!r}")
        super().check(config)

    def argument(self, config: CorpusConfig) -> str | None:
        """The prefix."""
        return config.path

    def open(self, config: CorpusConfig) -> Corpus:
        """Raises DataError where there is nothing to read, StorageError where S3 can't be reached."""
        return Corpus(config, s3_sources(_path(config), config.text_field))


class FilesCorpus(CorpusKind):
    """A file, a folder or a glob; on the command line every other text means one."""

    source = "files"
    position = 2
    is_fallback = True

    def parse(self, text: str) -> CorpusConfig | None:
        """A path, made absolute."""
        if not text.strip():
            raise DataError(f"a corpus must be builtin, wikitext-2, a file, a folder, a glob or s3://…, got {text!r}")
        return CorpusConfig(source="files", path=os.path.abspath(os.path.expanduser(text.removeprefix("file://"))))

    def check(self, config: CorpusConfig) -> None:
        """A path."""
        _path(config)
        super().check(config)

    def argument(self, config: CorpusConfig) -> str | None:
        """The path."""
        return config.path

    def open(self, config: CorpusConfig) -> Corpus:
        """Raises DataError where it is missing, empty or not text."""
        return Corpus(config, file_sources(_path(config), config.text_field))


def _path(config: CorpusConfig) -> str:
    if not config.path:
        raise ValueError(f"source {config.source!r} needs a path, got {config.path!r}")
    return config.path
