"""From a corpus to a dataset in the store: tokenizer, shards, and the manifest last.

The folder is named by the fingerprint of what it depends on, and everything in it is a function of that: two processes
that prepare the same data write the same bytes, and one that was killed half way is simply run again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from podium.trainer.config import Section
from podium.trainer.data.corpora import Corpus, CorpusConfig, corpus_fingerprint, open_corpus
from podium.trainer.data.encoding import default_workers, encode_batches
from podium.trainer.data.manifest import SPLITS, TRAIN, FileEntry, Manifest, Split, load_manifest
from podium.trainer.data.shards import SHARD_TOKENS, ShardWriter
from podium.trainer.data.tokenizer import (
    MAX_VOCABULARY,
    MIN_VOCABULARY,
    SETTINGS,
    end_of_text,
    save_tokenizer,
    train_tokenizer,
)
from podium.trainer.errors import DataError
from podium.trainer.storage import MANIFEST, Storage, put_files, to_json
from podium.trainer.units import Count

DATA_VERSION = 1
"""Raised when the same corpus and settings would give other bytes."""
TOKENIZER_BYTES = 256_000_000
"""Training text that the tokenizer learns from, at most: its memory grows with it."""
BATCH_BYTES = 1_000_000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and bytes done and in all (about)."""


class PrepareConfig(Section):
    """What decides a prepared dataset."""

    corpus: CorpusConfig
    vocab_size: Count = Field(default=16_000, ge=MIN_VOCABULARY, le=MAX_VOCABULARY)
    """Entries of the tokenizer, end of text included."""
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
    corpus = open_corpus(config.corpus)
    scratch = Path(tempfile.mkdtemp(prefix="podium-prepare-"))
    try:
        manifest = _build(config, corpus, scratch, progress or _silent)
        files = put_files(target, scratch, "")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    entries = {name: FileEntry.model_validate(entry) for name, entry in files.items()}
    manifest = manifest.model_copy(update={"fingerprint": fingerprint, "files": entries})
    # Another process may have been first: then its manifest says the same.
    target.create(MANIFEST, to_json(manifest.model_dump()))
    return manifest


def _fingerprint(config: PrepareConfig, corpus: str) -> str:
    identity = {
        "version": DATA_VERSION,
        "corpus": corpus,
        "vocab_size": config.vocab_size,
        "tokenizer": {**SETTINGS, "bytes": TOKENIZER_BYTES},
        "shard_tokens": config.shard_tokens,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _build(config: PrepareConfig, corpus: Corpus, folder: Path, progress: Progress) -> Manifest:
    tokenizer = train_tokenizer(_training_texts(corpus, progress), config.vocab_size)
    save_tokenizer(tokenizer, folder)
    end = end_of_text(tokenizer)
    writers = {split: ShardWriter(folder, split, shard_tokens=config.shard_tokens) for split in SPLITS}
    tokens, sizes, documents = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    under_way: list[tuple[str, int]] = []

    def batches() -> Iterator[list[str]]:
        for split, texts, size in _batches(corpus):
            under_way.append((split, size))
            sizes[split] += size
            documents[split] += len(texts)
            yield texts

    workers = config.workers or default_workers(corpus.bytes)
    done = 0
    for ids in encode_batches(tokenizer, end, batches(), workers=workers):
        split, size = under_way.pop(0)
        writers[split].append(ids)
        tokens[split] += len(ids)
        done += size
        progress("tokenising", done, corpus.bytes)
    for writer in writers.values():
        writer.close()
    empty = [split for split in SPLITS if not documents[split]]
    if empty:
        raise DataError(
            f"corpus {corpus.config.description!r}: too few documents to split, none left for {', '.join(empty)}"
        )
    return Manifest(
        fingerprint="",
        corpus=corpus.config.description,
        corpus_fingerprint=corpus.fingerprint,
        vocab_size=config.vocab_size,
        tokenizer_size=tokenizer.get_vocab_size(),
        end_of_text=end,
        splits={
            split: Split(
                tokens=tokens[split], bytes=sizes[split], documents=documents[split], shards=writers[split].shards
            )
            for split in SPLITS
        },
        files={},
    )


def _training_texts(corpus: Corpus, progress: Progress) -> Iterator[str]:
    done = 0
    for split, document in corpus.documents():
        if split == TRAIN and done + document.bytes <= TOKENIZER_BYTES:
            done += document.bytes
            progress("training the tokenizer", done, corpus.bytes)
            yield document.text
    if done == 0:
        raise DataError(f"corpus {corpus.config.description!r}: no text to train on")


def _batches(corpus: Corpus) -> Iterator[tuple[str, list[str], int]]:
    """(split, texts, bytes) of about BATCH_BYTES, documents of a split in their order."""
    held: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, document in corpus.documents():
        held[split].append(document.text)
        sizes[split] += document.bytes
        if sizes[split] >= BATCH_BYTES:
            yield split, held[split], sizes[split]
            held[split], sizes[split] = [], 0
    for split in SPLITS:
        if held[split]:
            yield split, held[split], sizes[split]


def _silent(what: str, done: int, total: int) -> None:
    pass
