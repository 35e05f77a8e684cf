"""The store: objects in a folder or in S3, with the same promises on both. `open_storage` opens one by its URI."""

from __future__ import annotations

from pathlib import Path

from podium.trainer.trial.storage.base import (
    MANIFEST,
    TAIL_LINES,
    Leftover,
    Storage,
    check_key,
    get_folder,
    join_uri,
    normalise_uri,
    put_files,
    put_folder,
    read_end,
    read_tail,
    remove_leftovers,
    sha256_of,
    split_uri,
    to_json,
)
from podium.trainer.trial.storage.file import FileStorage

__all__ = [
    "MANIFEST",
    "TAIL_LINES",
    "Leftover",
    "Storage",
    "check_key",
    "get_folder",
    "join_uri",
    "normalise_uri",
    "open_storage",
    "put_files",
    "put_folder",
    "read_end",
    "read_tail",
    "remove_leftovers",
    "sha256_of",
    "split_uri",
    "to_json",
]


def open_storage(uri: str) -> Storage:
    """The store at `uri`; nothing is read or written yet. Raises UserError for a scheme that Podium does not know."""
    uri = normalise_uri(uri)
    if uri.startswith("s3://"):
        # boto3 takes 0.3 s to import, which a store in a folder need not pay for
        from podium.trainer.trial.storage.s3 import S3Storage

        return S3Storage(uri)
    return FileStorage(Path(uri.removeprefix("file://")))
