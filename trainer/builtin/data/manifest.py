"""`manifest.json` of a prepared dataset, and what decides its content. Without NumPy and the tokenizers library.

Together they take 0.14 s of CPU to import, and every `podium` command reads a study, which has a corpus.
The manifest is written last, so that its existence means that the dataset is complete.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from podium.trainer.trial.errors import DataError, NotFoundError, Problem
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import MANIFEST, Storage, get_folder, join_uri, open_storage

TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"  # noqa: S105  a file name
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
HEADER_INTS = 256
"""32-bit numbers before a shard's tokens."""
HEADER_BYTES = HEADER_INTS * 4
SHARD_TOKENS = 100_000_000
"""Tokens of a full shard, as FineWeb's."""


class FileEntry(Section):
    """One file of the dataset's folder."""

    bytes: int
    sha256: str


class Shard(Section):
    """One `.bin` file of a split."""

    file: str
    tokens: int
    sha256: str | None
    """None where it lies elsewhere and its place does not say."""
    stamp: str | None = None
    """Of a shard that lies elsewhere: what its place gave for its content when the dataset was prepared."""
    domain: str | None = None
    """What kind of text it holds, where the corpus is of several."""


class Split(Section):
    """One split, its shards in reading order."""

    tokens: int
    """End-of-text tokens included. Where its last shard has more, the rest is not the split's."""
    bytes: int | None
    """UTF-8 bytes of its documents; None where only their tokens are known."""
    documents: int | None
    shards: list[Shard]


class Manifest(Section):
    """What a prepared dataset is and where it came from."""

    format_version: Literal[1] = 1
    fingerprint: str
    """Of the corpus, the tokenizer's settings and the format: the name of the dataset's folder."""
    corpus: str
    """The corpus in words."""
    corpus_fingerprint: str
    vocab_size: int = Field(gt=1, le=65536)
    """Vocabulary that was asked for: the rows of a model's embedding."""
    tokenizer_size: int
    """Vocabulary that the tokenizer has: less than `vocab_size` where the corpus has too little text to fill it."""
    end_of_text: int
    """Id of the token after every document."""
    splits: dict[str, Split]
    files: dict[str, FileEntry]
    source: str | None = None
    """Where the shards lie: a folder's or S3's URI, or hub://owner/name@commit; None: in the dataset's folder."""

    @property
    def tokenizer_sha256(self) -> str | None:
        """Identity of the tokenizer: losses per token compare only where it is the same. None where it is not here."""
        return self.files[TOKENIZER].sha256 if TOKENIZER in self.files else None

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of a mixture, in order; none of any other corpus."""
        found = dict.fromkeys(shard.domain for split in self.splits.values() for shard in split.shards)
        return tuple(name for name in found if name is not None)

    def split(self, name: str) -> Split:
        """The split called `name`. Raises DataError naming those there are."""
        if name not in self.splits:
            raise DataError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        return self.splits[name]


def load_manifest(storage: Storage) -> Manifest:
    """The manifest of the dataset at the storage's root. Raises DataError where it is missing or damaged."""
    where = join_uri(storage.uri, MANIFEST)
    try:
        return Manifest.model_validate_json(storage.read_bytes(MANIFEST))
    except NotFoundError:
        raise DataError(f"no prepared dataset at {storage.uri}: it has no {MANIFEST} (prepare it first)") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(Problem(where, f"not a dataset's manifest: {place or 'the file'}: {first['msg']}")) from None


def check_lengths(manifest: Manifest, sequence_length: int, splits: tuple[str, ...] = (TRAIN, VALIDATION)) -> None:
    """Refuse a dataset with a split shorter than one block of sequence_length + 1 tokens. Raises DataError."""
    short = [
        Problem(
            name, f"must have at least one block of {sequence_length + 1} tokens, got {manifest.split(name).tokens}"
        )
        for name in splits
        if manifest.split(name).tokens < sequence_length + 1
    ]
    if short:
        raise DataError(short, source=f"dataset {manifest.fingerprint} ({manifest.corpus})")


def dataset_folder(uri: str, cache_dir: Path | None = None) -> Path:
    """A local folder of the prepared dataset at `uri`, every file verified against its sha256.

    A `file://` dataset is read where it is; one in S3 is fetched once into `cache_dir` (by default the user's cache
    folder). Raises DataError where there is no dataset, StorageError where it is damaged or can't be fetched.
    """
    storage = open_storage(uri)
    load_manifest(storage)
    return get_folder(storage, "", cache_dir or default_cache() / "datasets")


def default_cache() -> Path:
    """`$PODIUM_CACHE`, else `podium` in the user's cache folder."""
    given = os.environ.get("PODIUM_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podium"


# What decides the tokenizer beside the text.

END_OF_TEXT = "<|endoftext|>"
MIN_VOCABULARY, MAX_VOCABULARY = 257, 65536
"""256 bytes and the end of text; what uint16 holds."""
MIN_FREQUENCY = 2
TRAINING_BYTES = 256_000_000
"""Training text that the tokenizer learns from, at most: its memory grows with it."""
SETTINGS = {
    "model": "byte-level BPE",
    "pattern": "gpt2",
    "min_frequency": MIN_FREQUENCY,
    "special": [END_OF_TEXT],
    "training_bytes": TRAINING_BYTES,
}
"""Hashed into the dataset's fingerprint."""
