"""A model's two files on this machine, wherever they lie."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podium.trainer.errors import CheckpointError, NotFoundError
from podium.trainer.storage import open_storage, split_uri


@contextmanager
def local_model(uri: str) -> Iterator[Path]:
    """The path of a `.safetensors` with its `.json` beside it; a copy where `uri` is remote. Raises CheckpointError."""
    folder, name = split_uri(uri)
    storage = open_storage(folder)
    local = storage.local_path(name)
    if local is not None:
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="podium-model-") as scratch:
        path = Path(scratch) / name
        try:
            storage.download(name, path)
            storage.download(Path(name).with_suffix(".json").name, path.with_suffix(".json"))
        except NotFoundError as error:
            raise CheckpointError(str(error)) from None
        yield path
