"""From a corpus to a dataset in the store: tokenizer, shards, and the manifest last.

The folder is named by the fingerprint of what it depends on, and everything in it is a function of that: two processes
that prepare the same data write the same bytes, and one that was killed half way is simply run again.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field
from tokenizers import Tokenizer

from podium.trainer.builtin.data.corpus import Corpus, CorpusConfig, corpus_fingerprint, open_corpus
from podium.trainer.builtin.data.mixture import MixtureCorpus
from podium.trainer.builtin.data.shards import (
    SHARD_TOKENS,
    SPLITS,
    TOKENIZER,
    TRAIN,
    FileEntry,
    Manifest,
    ShardWriter,
    Split,
    load_manifest,
)
from podium.trainer.builtin.data.tokenizer import (
    MAX_VOCABULARY,
    MIN_VOCABULARY,
    SETTINGS,
    TRAINING_BYTES,
    end_of_text,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from podium.trainer.builtin.pretrained import HUB, source_folder
from podium.trainer.trial.errors import DataError, StorageError
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import MANIFEST, Storage, put_files, sha256_of, to_json
from podium.trainer.trial.units import Count

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
    if config.corpus.source == "fineweb":
        return _name_shards(config, target, fingerprint)

    corpus = open_corpus(config.corpus)
    if _fingerprint(config, corpus.fingerprint) != fingerprint:
        raise DataError(f"corpus {config.corpus.description!r} changed while it was read: prepare it again")
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


def _name_shards(config: PrepareConfig, target: Storage, fingerprint: str) -> Manifest:
    """The dataset of shards that lie elsewhere: its tokenizer, where one is given, and a manifest that names them."""
    from podium.trainer.builtin.data.fineweb import list_shards, manifest_of

    listing = list_shards(config.corpus)
    manifest = manifest_of(config.corpus, listing, config.vocab_size)
    if _fingerprint(config, listing.fingerprint) != fingerprint:
        raise DataError(f"corpus {config.corpus.description!r} changed while it was read: prepare it again")
    files = {}
    given = _given_tokenizer(config)
    if given is not None:
        from podium.trainer.builtin.data.tokenizer import load_tokenizer, save_tokenizer

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


# Text to ids, exactly as the tokenizer does it whole, several times faster.
#
# GPT-2's pattern cuts a text into pieces that are encoded apart, and most pieces are seen again and again. So the
# text is cut here by Python's `re`, and only pieces not seen before go through the tokenizer. The cuts must be a
# subset of GPT-2's: on ASCII the pattern below is GPT-2's own; a piece that touches any other character reaches to
# the next white space, where GPT-2 always cuts, and the tokenizer does the rest.

Ids = npt.NDArray[np.uint16]

_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space as Unicode and the tokenizer have it; Python's own class has four control characters more."""
_ASCII_ONLY = r"(?![^\x00-\x7f])"
_PIECES = re.compile(
    r"'(?:[stmd]|re|ve|ll)"
    rf"| ?[A-Za-z]++{_ASCII_ONLY}"
    rf"| ?[0-9]++{_ASCII_ONLY}"
    rf"| ?[\x00-\x08\x0e-\x1f!-/:-@\[-`{{-\x7f]++{_ASCII_ONLY}"
    rf"| ?[^{_SPACE}]+"
    rf"|[{_SPACE}]+(?![^{_SPACE}])"
    rf"|[{_SPACE}]+"
)
MAX_PIECES = 400_000
"""Pieces remembered by one encoder; about 100 MB at worst, then it starts anew."""
SERIAL_BYTES = 16_000_000
"""Below this a process pool costs more than it saves."""


class Encoder:
    """Encodes documents; remembers the ids of every piece it has seen."""

    def __init__(self, tokenizer: Tokenizer, end_of_text: int) -> None:
        # A text that spells out a special token is still only text.
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._end = [end_of_text]
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> Ids:
        """The ids of the texts, one after the other, each with the end of text behind it."""
        pieces = [_PIECES.findall(text) for text in texts]
        if len(self._known) > MAX_PIECES:
            self._known = {}
        known = self._known
        new = [piece for piece in dict.fromkeys(chain.from_iterable(pieces)) if piece not in known]
        for piece, encoding in zip(new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True):
            known[piece] = encoding.ids
        ids = (chain(chain.from_iterable(map(known.__getitem__, found)), self._end) for found in pieces)
        return np.fromiter(chain.from_iterable(ids), dtype=np.uint16)


def encode_batches(
    tokenizer: Tokenizer, end_of_text: int, batches: Iterable[Sequence[str]], *, workers: int
) -> Iterator[Ids]:
    """The ids of each batch of documents, in order, whatever the number of worker processes; 1 works in this process.

    At most three batches a worker are under way, so memory does not grow with the corpus.
    """
    if workers == 1:
        encoder = Encoder(tokenizer, end_of_text)
        yield from (encoder.encode(batch) for batch in batches)
        return
    # spawn: the tokenizers library has threads, and a fork of a process with threads may hang
    context = multiprocessing.get_context("spawn")
    setup = (tokenizer.to_str(), end_of_text, os.getpid())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=setup) as pool:
        running: deque[Future[bytes]] = deque()
        for batch in batches:
            running.append(pool.submit(_work, list(batch)))
            if len(running) >= 3 * workers:
                yield np.frombuffer(running.popleft().result(), dtype=np.uint16)
        while running:
            yield np.frombuffer(running.popleft().result(), dtype=np.uint16)


def default_workers(total_bytes: int) -> int:
    """A worker for every processor this process may use, or none beside it where the corpus is small."""
    if total_bytes < SERIAL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_encoder: Encoder | None = None


def _start_worker(tokenizer: str, end_of_text: int, parent: int) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives a killed parent
        if os.getppid() != parent:
            os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pool has all processors already
    _encoder = Encoder(Tokenizer.from_str(tokenizer), end_of_text)


def _work(texts: list[str]) -> bytes:
    assert _encoder is not None
    return _encoder.encode(texts).tobytes()


# Build a dataset's files in a local folder: train the tokenizer, then tokenise document by document into shards.

BATCH_BYTES = 1_000_000

EncodingProgress = Callable[[str, int, int], None]


def build_dataset(
    corpus: Corpus | MixtureCorpus,
    folder: Path,
    *,
    vocab_size: int,
    shard_tokens: int,
    workers: int | None,
    progress: EncodingProgress,
    given_tokenizer: Path | None = None,
) -> Manifest:
    """Write tokenizer and shards into a local folder; returns the manifest, its fingerprint and files still open.

    `given_tokenizer` is the folder of a tokenizer that is not to be trained. Memory is bounded by a few batches of text
    a worker and what the tokenizer learns from. Raises DataError for a corpus with too few documents to split.
    """
    if given_tokenizer is None:
        tokenizer = train_tokenizer(_training_texts(corpus, progress), vocab_size)
    else:
        tokenizer = load_tokenizer(given_tokenizer)
        if tokenizer.get_vocab_size() > vocab_size:
            raise DataError(
                f"vocab_size: must be at least the tokenizer's {tokenizer.get_vocab_size()}, got {vocab_size}"
            )
    save_tokenizer(tokenizer, folder)
    end = end_of_text(tokenizer)
    parts = corpus.domains or (None,)
    writers = {
        (split, domain): ShardWriter(folder, split, shard_tokens=shard_tokens, domain=domain)
        for split in SPLITS
        for domain in parts
    }
    tokens, sizes, documents = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    under_way: list[tuple[str, str | None, int]] = []

    def batches() -> Iterator[list[str]]:
        for split, domain, texts, size in _batches(corpus):
            under_way.append((split, domain, size))
            sizes[split] += size
            documents[split] += len(texts)
            yield texts

    workers = workers or default_workers(corpus.bytes)
    done = 0
    for ids in encode_batches(tokenizer, end, batches(), workers=workers):
        split, domain, size = under_way.pop(0)
        writers[split, domain].append(ids)
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
        vocab_size=vocab_size,
        tokenizer_size=tokenizer.get_vocab_size(),
        end_of_text=end,
        splits={
            split: Split(
                tokens=tokens[split],
                bytes=sizes[split],
                documents=documents[split],
                shards=[shard for domain in parts for shard in writers[split, domain].shards],
            )
            for split in SPLITS
        },
        files={},
    )


def _training_texts(corpus: Corpus | MixtureCorpus, progress: EncodingProgress) -> Iterator[str]:
    done = 0
    for split, document in corpus.documents():
        if split == TRAIN and done + document.bytes <= TRAINING_BYTES:
            done += document.bytes
            progress("training the tokenizer", done, corpus.bytes)
            yield document.text
    if done == 0:
        raise DataError(f"corpus {corpus.config.description!r}: no text to train on")


def _batches(corpus: Corpus | MixtureCorpus) -> Iterator[tuple[str, str | None, list[str], int]]:
    """(split, domain, texts, bytes) of about BATCH_BYTES, documents of a split and domain in their order."""
    parts = corpus.domains or (None,)
    held: dict[tuple[str, str | None], list[str]] = {(split, domain): [] for split in SPLITS for domain in parts}
    sizes = dict.fromkeys(held, 0)
    for split, document in corpus.documents():
        key = split, document.domain if corpus.domains else None
        held[key].append(document.text)
        sizes[key] += document.bytes
        if sizes[key] >= BATCH_BYTES:
            yield *key, held[key], sizes[key]
            held[key], sizes[key] = [], 0
    for key, texts in held.items():
        if texts:
            yield *key, texts, sizes[key]
