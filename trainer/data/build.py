"""Build a dataset's files in a local folder: train the tokenizer, then tokenise document by document into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from podium.trainer.data.corpora import Corpus
from podium.trainer.data.encoding import default_workers, encode_batches
from podium.trainer.data.manifest import SPLITS, TRAIN, Manifest, Split
from podium.trainer.data.mixture import MixtureCorpus
from podium.trainer.data.shards import ShardWriter
from podium.trainer.data.tokenizer import end_of_text, load_tokenizer, save_tokenizer, train_tokenizer
from podium.trainer.data.vocabulary import TRAINING_BYTES
from podium.trainer.errors import DataError

BATCH_BYTES = 1_000_000

Progress = Callable[[str, int, int], None]


def build_dataset(
    corpus: Corpus | MixtureCorpus,
    folder: Path,
    *,
    vocab_size: int,
    shard_tokens: int,
    workers: int | None,
    progress: Progress,
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


def _training_texts(corpus: Corpus | MixtureCorpus, progress: Progress) -> Iterator[str]:
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
