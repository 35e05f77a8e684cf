"""A pretrained GPT-2 wherever it lies: the Hugging Face hub, a folder, or s3://…, as a local folder. Without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from podium.trainer.builtin.data.manifest import default_cache
from podium.trainer.trial.errors import ConfigError, NotFoundError, Problem
from podium.trainer.trial.storage import join_uri, open_storage

HUB = {"gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e")}
"""Name → repository of the hub and the commit that is meant."""
WEIGHTS = ("config.json", "model.safetensors")
TOKENIZER = "tokenizer.json"
_WHERE = "must be gpt2 (the hub), a folder, or s3://…, with config.json and model.safetensors"


def source_folder(source: str, names: tuple[str, ...] = WEIGHTS, *, where: str = "model.source") -> Path:
    """A local folder that holds the files `names` of a source. Raises ConfigError where they can't be had."""
    if source in HUB:
        return _from_hub(source, names, where)
    if source.startswith("s3://"):
        return _from_s3(source, names, where)
    folder = Path(source.removeprefix("file://")).expanduser()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(Problem(where, f"{_WHERE}, got {source!r}: no {', '.join(missing)} there"))
    return folder


def _from_hub(source: str, names: tuple[str, ...], where: str) -> Path:
    from huggingface_hub import hf_hub_download

    repository, revision = HUB[source]
    try:
        paths = [Path(hf_hub_download(repository, name, revision=revision)) for name in names]
    except Exception as error:  # noqa: BLE001  the library raises its own, httpx's and OSError
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            Problem(where, f"{source!r} can't be fetched from the hub ({first}); give a folder or s3://… that has it")
        ) from None
    return paths[0].parent


def _from_s3(source: str, names: tuple[str, ...], where: str) -> Path:
    storage = open_storage(source)
    try:
        stamps = [(name, storage.stamp(name)) for name in names]
    except NotFoundError as error:
        raise ConfigError(Problem(where, f"{_WHERE}, got {source!r}: {error}")) from None
    key = hashlib.sha256(repr((join_uri(source), stamps)).encode()).hexdigest()[:16]
    folder = default_cache() / "pretrained" / key
    for name in names:
        if not (folder / name).is_file():
            storage.download(name, folder / name)
    return folder
