"""A corpus's text as tokens in shards: train the tokenizer, encode the documents in parallel, write a local folder."""

from __future__ import annotations

import ctypes
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
from tokenizers import Tokenizer

from podium.trainer.builtin.data.corpus import (
    TextCorpus,
)
from podium.trainer.builtin.data.manifest import (
    SPLITS,
    TRAIN,
    TRAINING_BYTES,
    Manifest,
    Split,
)
from podium.trainer.builtin.data.shards import ShardWriter
from podium.trainer.builtin.data.tokenizer import end_of_text, load_tokenizer, save_tokenizer, train_tokenizer
from podium.trainer.trial.errors import DataError

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


# A dataset's files in a local folder: train the tokenizer, then tokenise document by document into shards.

BATCH_BYTES = 1_000_000

EncodingProgress = Callable[[str, int, int], None]


def build_dataset(
    corpus: TextCorpus,
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


def _training_texts(corpus: TextCorpus, progress: EncodingProgress) -> Iterator[str]:
    done = 0
    for split, document in corpus.documents():
        if split == TRAIN and done + document.bytes <= TRAINING_BYTES:
            done += document.bytes
            progress("training the tokenizer", done, corpus.bytes)
            yield document.text
    if done == 0:
        raise DataError(f"corpus {corpus.config.description!r}: no text to train on")


def _batches(corpus: TextCorpus) -> Iterator[tuple[str, str | None, list[str], int]]:
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
