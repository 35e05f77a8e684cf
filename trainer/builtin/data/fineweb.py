"""Shards that somebody else tokenised, as FineWeb's for GPT-2: a dataset whose manifest names them where they lie.

They are found in a folder, in S3 or on the hub by their names (`fineweb_train_000001.bin`, `fineweb_val_000000.bin`).
Preparing copies nothing; training reads a folder's shards in place and fetches others as it goes (`shard_cache`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from podium.trainer.builtin.data.corpus import HUB_SHARDS, CorpusConfig
from podium.trainer.builtin.data.shards import HEADER_BYTES, TRAIN, VALIDATION, Manifest, Shard, Split, open_shard
from podium.trainer.trial.errors import DataError
from podium.trainer.trial.process import scratch_name
from podium.trainer.trial.storage import Storage, open_storage, sha256_of

HUB_REPOSITORY = "kjj0/fineweb10B-gpt2"
HUB = "hub://"
"""Begins the source of a dataset on the hub: `hub://owner/name@commit`."""
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

    source: str
    train: list[Listed]
    validation: list[Listed]

    @property
    def fingerprint(self) -> str:
        """Identity of the tokens; no path and no name."""
        identity = [[shard.bytes, shard.identity] for shard in (*self.train, *self.validation)]
        return hashlib.sha256(json.dumps([len(self.train), VALIDATION_TOKENS, identity]).encode()).hexdigest()[:32]


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
    return Listing(source, train, validation)


def manifest_of(config: CorpusConfig, listing: Listing, vocab_size: int) -> Manifest:
    """The manifest of a dataset that names these shards; fingerprint and files are still open.

    Raises DataError for a vocabulary too small for GPT-2's tokens.
    """
    if vocab_size < GPT2_TOKENS:
        raise DataError(f"vocab_size: shards of GPT-2's tokens take at least {GPT2_TOKENS}, got {vocab_size}")
    first = min(VALIDATION_TOKENS + 1, listing.validation[0].tokens)
    return Manifest(
        fingerprint="",
        corpus=config.description,
        corpus_fingerprint=listing.fingerprint,
        vocab_size=vocab_size,
        tokenizer_size=GPT2_TOKENS,
        end_of_text=GPT2_END_OF_TEXT,
        splits={
            TRAIN: _split(listing.train, sum(shard.tokens for shard in listing.train)),
            VALIDATION: _split(listing.validation, first),
        },
        files={},
        source=listing.source,
    )


def fetch(source: str, name: str, path: Path) -> None:
    """Copy a shard from its place to a local file, whole or not at all. Raises DataError or StorageError."""
    if not source.startswith(HUB):
        open_storage(source).download(name, path)
        return
    repository, _, commit = source.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise DataError(_needs_hub()) from None
    try:
        with tempfile.TemporaryDirectory(prefix=scratch_name("hub"), dir=path.parent) as place:
            got = hf_hub_download(
                repository, name, repo_type="dataset", revision=commit, local_dir=place, endpoint=_endpoint()
            )
            os.replace(got, path)
    except Exception as error:  # noqa: BLE001  the library raises errors of three others', with no common base
        raise DataError(f"{source}: {name} can't be fetched ({_first_line(error)})") from None


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
        raise DataError(_needs_hub()) from None
    try:
        about = HfApi(endpoint=_endpoint()).dataset_info(HUB_REPOSITORY, files_metadata=True)
    except Exception as error:  # noqa: BLE001  as in `fetch`
        raise DataError(
            f"corpus 'fineweb': the hub's {HUB_REPOSITORY} can't be listed ({_first_line(error)}); "
            "give a folder or s3://bucket/prefix with shards: fineweb:PATH"
        ) from None
    found = []
    for file in sorted(about.siblings or [], key=lambda each: each.rfilename):
        if file.rfilename.endswith(".bin") and file.size is not None:
            sha256 = file.lfs["sha256"] if file.lfs else None
            found.append(Listed(file.rfilename, file.size, sha256 or file.blob_id or "", sha256))
    return f"{HUB}{HUB_REPOSITORY}@{about.sha}", found


def _endpoint() -> str | None:
    """Read at each call: the library reads its environment once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _needs_hub() -> str:
    return "corpus 'fineweb' from the hub needs the library huggingface_hub; or give fineweb:PATH or fineweb:s3://…"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
