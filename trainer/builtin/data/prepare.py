"""From a corpus to a dataset in the store: tokenizer, shards, and the manifest last.

The folder is named by the fingerprint of what it depends on, and everything in it is a function of that: two processes
that prepare the same data write the same bytes, and one that was killed half way is simply run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from podium.trainer.builtin.data.corpus import (
    CorpusConfig,
    TokenisedCorpus,
    corpus_fingerprint,
    open_corpus,
)
from podium.trainer.builtin.data.manifest import (
    MAX_VOCABULARY,
    MIN_VOCABULARY,
    SETTINGS,
    SHARD_TOKENS,
    TOKENIZER,
    FileEntry,
    Manifest,
    load_manifest,
)
from podium.trainer.builtin.pretrained import HUB, source_folder
from podium.trainer.trial.errors import DataError, StorageError
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.section import Count, Section
from podium.trainer.trial.storage import MANIFEST, Storage, put_files, sha256_of, to_json

DATA_VERSION = 1
"""Raised when the same corpus and settings would give other bytes."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and bytes done and in all (about)."""


class PrepareConfig(Section):
    """What decides a prepared dataset."""

    corpus: CorpusConfig
    vocab_size: Count = Field(default=16_000, ge=MIN_VOCABULARY, le=MAX_VOCABULARY)
    """Entries of the tokenizer, end of text included."""
    tokenizer: str | None = None
    """Where a tokenizer.json is that is taken instead of training one: `gpt2` (the hub), a folder, or s3://…"""
    workers: int | None = Field(default=None, gt=0)
    """Processes that tokenise; by default one a processor, for a small corpus this one alone. Not hashed."""
    shard_tokens: Count = Field(default=SHARD_TOKENS, gt=0)
    """Tokens of a full shard."""


def data_fingerprint(config: PrepareConfig) -> str:
    """16 hex digits over corpus, tokenizer settings and format. Nothing is tokenised. Raises DataError."""
    return _fingerprint(config, corpus_fingerprint(config.corpus))


def dataset_key(fingerprint: str) -> str:
    """The folder of a dataset below the store's root."""
    return f"data/{fingerprint}"


def prepare(config: PrepareConfig, store: Storage, progress: Progress | None = None) -> Manifest:
    """Prepare the dataset at `<store>/data/<fingerprint>/`, or do nothing where it is complete; returns its manifest.

    Raises DataError for a corpus that can't serve, StorageError where the store can't be written.
    """
    fingerprint = data_fingerprint(config)
    target = store.child(dataset_key(fingerprint))
    if target.exists(MANIFEST):
        return load_manifest(target)
    kind = config.corpus.kind
    if kind.is_tokenised:
        return _name_shards(config, kind.shards(config.corpus), target, fingerprint)

    corpus = open_corpus(config.corpus)
    if _fingerprint(config, corpus.fingerprint) != fingerprint:
        raise DataError(f"corpus {config.corpus.description!r} changed while it was read: prepare it again")
    # it imports NumPy and tokenizers (0.14 s of CPU), which a dataset that is there already does without
    from podium.trainer.builtin.data.encode import build_dataset

    with scratch_folder("prepare") as scratch:
        manifest = build_dataset(
            corpus,
            scratch,
            vocab_size=config.vocab_size,
            shard_tokens=config.shard_tokens,
            workers=config.workers,
            progress=progress or _silent,
            given_tokenizer=_given_tokenizer(config),
        )
        files = put_files(target, scratch, "")
    entries = {name: FileEntry.model_validate(entry) for name, entry in files.items()}
    manifest = manifest.model_copy(update={"fingerprint": fingerprint, "files": entries})
    if not target.create(MANIFEST, to_json(manifest.model_dump())) and load_manifest(target) != manifest:
        raise StorageError(
            f"{target.uri}: another process prepared this dataset at the same time with other libraries, and the files "
            f"are now mixed: delete this folder and prepare again"
        )
    return manifest


def _name_shards(config: PrepareConfig, shards: TokenisedCorpus, target: Storage, fingerprint: str) -> Manifest:
    """The dataset of shards that lie elsewhere: its tokenizer, where one is given, and a manifest that names them."""
    manifest = shards.manifest(config.vocab_size)
    if _fingerprint(config, shards.fingerprint) != fingerprint:
        raise DataError(f"corpus {config.corpus.description!r} changed while it was read: prepare it again")
    files = {}
    given = _given_tokenizer(config)
    if given is not None:
        from podium.trainer.builtin.data.tokenizer import load_tokenizer, save_tokenizer  # as above

        tokenizer = load_tokenizer(given)
        if tokenizer.get_vocab_size() != manifest.tokenizer_size:
            raise DataError(
                f"data.tokenizer: must be the one that made the shards, with {manifest.tokenizer_size} entries, "
                f"got {tokenizer.get_vocab_size()}"
            )
        with scratch_folder("prepare") as scratch:
            save_tokenizer(tokenizer, scratch)
            files = put_files(target, scratch, "")
    entries = {name: FileEntry.model_validate(entry) for name, entry in files.items()}
    manifest = manifest.model_copy(update={"fingerprint": fingerprint, "files": entries})
    target.create(MANIFEST, to_json(manifest.model_dump()))
    return load_manifest(target)


def _fingerprint(config: PrepareConfig, corpus: str) -> str:
    identity = {
        "version": DATA_VERSION,
        "corpus": corpus,
        "vocab_size": config.vocab_size,
        "tokenizer": SETTINGS,
        "shard_tokens": config.shard_tokens,
    }
    if config.tokenizer is not None:
        identity["tokenizer"] = _tokenizer_identity(config.tokenizer)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _given_tokenizer(config: PrepareConfig) -> Path | None:
    if config.tokenizer is None:
        return None
    return source_folder(config.tokenizer, (TOKENIZER,), where="data.tokenizer")


def _tokenizer_identity(source: str) -> str:
    """Of its content, or of its pinned commit of the hub, from where it is not fetched for this."""
    if source in HUB:
        return "@".join(HUB[source])
    return sha256_of(source_folder(source, (TOKENIZER,), where="data.tokenizer") / TOKENIZER)


def _silent(what: str, done: int, total: int) -> None:
    pass
