"""The checkpoint under evaluation with its data and tokenizer, checked before anything is measured."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from podium.trainer.checkpoint import load_model
from podium.trainer.config import TrainConfig
from podium.trainer.data.manifest import Manifest, dataset_folder, load_manifest
from podium.trainer.data.tokenizer import end_of_text, load_tokenizer
from podium.trainer.errors import DataError, UserError
from podium.trainer.evaluation.locate import LocatedModel, locate_model
from podium.trainer.evaluation.request import EvaluationRequest
from podium.trainer.precision import choose_device, choose_precision
from podium.trainer.storage import normalise_uri, open_storage


@dataclass(frozen=True)
class Subject:
    """What is evaluated, where, and on what."""

    located: LocatedModel
    model: nn.Module
    config: TrainConfig
    about: dict[str, Any]
    """The sidecar of the weights."""
    device: torch.device
    dtype: torch.dtype
    autocast: AbstractContextManager[Any]
    data: Path | None
    manifest: Manifest | None
    """None where no part that was asked for reads it."""
    tokenizer: Tokenizer | None
    """None where SmallBench was not asked for, or the dataset has none."""


def open_subject(request: EvaluationRequest, scratch: Path) -> Subject:
    """Find and load all that the request needs. Raises UserError for what is missing or does not fit."""
    located = locate_model(request.checkpoint, scratch)
    model, config = load_model(located.path)
    device = choose_device(request.device)
    precision = choose_precision(request.precision, device)
    wants_smallbench = request.why_not("smallbench") is None
    uri = request.data or located.dataset
    data = manifest = tokenizer = None
    if request.why_not("perplexity") is None or (wants_smallbench and request.tokenizer is None):
        if uri is None:
            raise UserError("--data: required: the folder or URI of the prepared dataset")
        data = dataset_folder(uri)
        manifest = load_manifest(open_storage(str(data)))
        if manifest.tokenizer_size > config.model.vocab_size:
            raise DataError(
                f"--data: its tokens must fit the model's vocabulary of {config.model.vocab_size}, "
                f"got {manifest.tokenizer_size}"
            )
    has_own = manifest is not None and manifest.tokenizer_sha256 is not None
    if wants_smallbench and (request.tokenizer is not None or has_own):
        tokenizer = _tokenizer(request.tokenizer, data, config.model.vocab_size)
    return Subject(
        located=located,
        model=model.to(device),
        config=config,
        about=json.loads(located.path.with_suffix(".json").read_text()),
        device=device,
        dtype=precision.dtype,
        autocast=precision.autocast(),
        data=data,
        manifest=manifest,
        tokenizer=tokenizer,
    )


def _tokenizer(given: str | None, data: Path | None, vocab_size: int) -> Tokenizer:
    if given is not None:
        path = _local_file(given)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise DataError(f"--tokenizer: {given} is no tokenizer: {error}") from None
    else:
        assert data is not None
        tokenizer = load_tokenizer(data)
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise DataError(f"--tokenizer: must have at most the model's {vocab_size} entries, got {size}")
    end_of_text(tokenizer)
    return tokenizer


def _local_file(given: str) -> Path:
    """The path of a file that must be on this machine's file system. Raises DataError."""
    path = Path(normalise_uri(given).removeprefix("file://"))
    if not path.is_file():
        raise DataError(f"--tokenizer: must be a tokenizer.json on this machine, got {given}")
    return path
