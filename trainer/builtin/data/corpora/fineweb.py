"""Shards that somebody else tokenised, as FineWeb's for GPT-2: a dataset whose manifest names them where they lie.

They are found in a folder, in S3 or on the hub by their names (`fineweb_train_000001.bin`, `fineweb_val_000000.bin`).
Preparing copies nothing; training reads a folder's shards in place and fetches others as it goes (`shard_cache`).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from podium.trainer.builtin.data.corpus import CorpusConfig, CorpusKind
from podium.trainer.builtin.data.manifest import HEADER_BYTES, SHARD_TOKENS, TRAIN, VALIDATION, Manifest, Shard, Split
from podium.trainer.builtin.data.shard_cache import HUB, first_line, hub_endpoint, needs_hub
from podium.trainer.builtin.data.shards import open_shard
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.storage import Storage, open_storage, sha256_of

HUB_REPOSITORY = "kjj0/fineweb10B-gpt2"
HUB_SHARDS = 9
"""Training shards of 100M tokens that are taken of the hub's by default."""
VALIDATION_TOKENS = 10_485_760
"""Predicted tokens of the speedruns' evaluation: the first of the validation shard."""
GPT2_TOKENS, GPT2_END_OF_TEXT = 50257, 50256
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class Listed:
    """A shard as its place lists it; nothing of it is read but of a local one."""

    name: str
    bytes: int
    identity: str
    """Of its content, as well as the place can tell."""
    sha256: str | None = None

    @property
    def tokens(self) -> int:
        """By its size; whether the header says the same is seen when it is opened."""
        return max(0, self.bytes - HEADER_BYTES) // 2


@dataclass(frozen=True)
class Listing:
    """The shards of a corpus and where they lie."""

    description: str
    """The corpus in words."""
    source: str
    train: list[Listed]
    validation: list[Listed]

    @property
    def fingerprint(self) -> str:
        """Identity of the tokens; no path and no name."""
        identity = [[shard.bytes, shard.identity] for shard in (*self.train, *self.validation)]
        return hashlib.sha256(json.dumps([len(self.train), VALIDATION_TOKENS, identity]).encode()).hexdigest()[:32]

    def manifest(self, vocab_size: int) -> Manifest:
        """The manifest of a dataset that names these shards; fingerprint and files are still open.

        Raises DataError for a vocabulary too small for GPT-2's tokens.
        """
        if vocab_size < GPT2_TOKENS:
            raise DataError(f"vocab_size: shards of GPT-2's tokens take at least {GPT2_TOKENS}, got {vocab_size}")
        first = min(VALIDATION_TOKENS + 1, self.validation[0].tokens)
        return Manifest(
            fingerprint="",
            corpus=self.description,
            corpus_fingerprint=self.fingerprint,
            vocab_size=vocab_size,
            tokenizer_size=GPT2_TOKENS,
            end_of_text=GPT2_END_OF_TEXT,
            splits={
                TRAIN: _split(self.train, sum(shard.tokens for shard in self.train)),
                VALIDATION: _split(self.validation, first),
            },
            files={},
            source=self.source,
        )


class FineWebCorpus(CorpusKind):
    """FineWeb's shards, or others of their form, in a folder, in S3 or on the hub."""

    source = "fineweb"
    position = 5
    is_tokenised = True

    def parse(self, text: str) -> CorpusConfig | None:
        """`fineweb` is the hub's, `fineweb:PLACE` a folder's or a prefix's in S3."""
        if text == "fineweb":
            return CorpusConfig(source="fineweb")
        if not text.startswith("fineweb:"):
            return None
        path = text.removeprefix("fineweb:")
        return CorpusConfig(source="fineweb", path=path if path.startswith("s3://") else os.path.abspath(path))

    def check(self, config: CorpusConfig) -> None:
        """Shards, and no cap on text."""
        super().check(config.model_copy(update={"shards": None}))
        if config.max_bytes is not None:
            raise ValueError(f"source 'fineweb' is limited by shards, got max_bytes: {config.max_bytes}")

    def describe(self, config: CorpusConfig) -> str:
        """Where they are."""
        return f"FineWeb shards of {config.path or 'the hub'}"

    def shards(self, config: CorpusConfig) -> Listing:
        """Raises DataError where there are none, or none for validation."""
        return list_shards(config)

    def tokens(self, config: CorpusConfig) -> int | None:
        """Of the shards that are asked for."""
        if config.path is not None and not config.shards:
            return None
        return SHARD_TOKENS * (config.shards or HUB_SHARDS)


def list_shards(config: CorpusConfig) -> Listing:
    """Find the corpus's shards. Raises DataError where there are none, or none for validation, saying what is there."""
    if config.path is None:
        source, found = _hub_files()
    else:
        storage = open_storage(config.path)
        source, names = storage.uri, [key for key in storage.list() if key.endswith(".bin")]
        found = [Listed(name, storage.size(name), "") for name in names]
    train = [shard for shard in found if "train" in Path(shard.name).name]
    validation = [shard for shard in found if "val" in Path(shard.name).name][:1]
    if not train or not validation:
        missing = "training" if not train else "validation"
        there = ", ".join(shard.name for shard in found[:5]) or "no .bin file"
        raise DataError(
            f"corpus {config.description!r}: no {missing} shards there: a name must end with .bin and say "
            f"{'train' if not train else 'val'}, got {there}"
        )
    wanted = config.shards or (HUB_SHARDS if config.path is None else len(train))
    if wanted > len(train):
        raise DataError(f"corpus {config.description!r}: has {len(train)} training shards, got shards: {wanted}")
    train = train[:wanted]
    if config.path is not None:
        train, validation = ([_identified(storage, shard) for shard in group] for group in (train, validation))
    return Listing(config.description, source, train, validation)


def _split(shards: list[Listed], tokens: int) -> Split:
    entries = [Shard(file=each.name, tokens=each.tokens, sha256=each.sha256, stamp=each.identity) for each in shards]
    return Split(tokens=tokens, bytes=None, documents=None, shards=entries)


def _identified(storage: Storage, shard: Listed) -> Listed:
    path = storage.local_path(shard.name)
    if path is None:
        return Listed(shard.name, shard.bytes, storage.stamp(shard.name))

    open_shard(path)  # refuses what is no shard before anything is registered
    return Listed(shard.name, shard.bytes, content_sample(path))


def content_sample(path: Path) -> str:
    """Identity of a large file without reading it all: of its first, middle and last MiB."""
    size = path.stat().st_size
    if size <= 4 * _SAMPLE:
        return sha256_of(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, size - _SAMPLE):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _hub_files() -> tuple[str, list[Listed]]:
    """Of the hub's default branch, at the commit at which it is now: names, sizes and sums, no content."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise DataError(needs_hub()) from None
    try:
        about = HfApi(endpoint=hub_endpoint()).dataset_info(HUB_REPOSITORY, files_metadata=True)
    except Exception as error:  # noqa: BLE001  as in `fetch_shard`
        raise DataError(
            f"corpus 'fineweb': the hub's {HUB_REPOSITORY} can't be listed ({first_line(error)}); "
            "give a folder or s3://bucket/prefix with shards: fineweb:PATH"
        ) from None
    found = []
    for file in sorted(about.siblings or [], key=lambda each: each.rfilename):
        if file.rfilename.endswith(".bin") and file.size is not None:
            sha256 = file.lfs["sha256"] if file.lfs else None
            found.append(Listed(file.rfilename, file.size, sha256 or file.blob_id or "", sha256))
    return f"{HUB}{HUB_REPOSITORY}@{about.sha}", found
