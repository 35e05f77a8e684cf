"""The checkpoint under evaluation with its data and tokenizer, checked before anything is measured."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from podium.trainer.builtin.checkpoint import load_model
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.data.manifest import Manifest, dataset_folder, load_manifest
from podium.trainer.builtin.data.tokenizer import end_of_text, load_tokenizer
from podium.trainer.builtin.evaluation.metrics import EvaluationRequest
from podium.trainer.builtin.setup import choose_device, choose_precision
from podium.trainer.trial.errors import CheckpointError, DataError, NotFoundError, UserError
from podium.trainer.trial.result import CONFIG
from podium.trainer.trial.storage import Storage, join_uri, normalise_uri, open_storage, split_uri

# Find the weights that a command line names: a file, a run's folder, or a version in the model registry.

_WHICH = {"final": "final-model", "best": "best-model"}
_SUBFOLDERS = ("", "checkpoints/")
"""Where a run used alone and a study's trial keep their weights."""


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """Weights on this machine, and what their run's folder says of them."""

    path: Path
    """`<name>.safetensors` with `<name>.json` beside it."""
    uri: str
    dataset: str | None = None
    """URI of the dataset that the run was trained on, where its folder is known."""
    run: str | None = None
    """Name of the run's folder."""


def locate_model(checkpoint: str, scratch: Path) -> LocatedModel:
    """The weights named by `checkpoint` (see `EvaluationRequest.checkpoint`), copied into `scratch` where remote.

    Raises CheckpointError naming what there is instead.
    """
    if checkpoint.startswith("models:/"):
        return _from_registry(checkpoint, scratch)
    if checkpoint.endswith(".pt"):
        raise CheckpointError(
            f"--checkpoint: takes model weights (model-*.safetensors, best-model, final-model) or a run's folder, "
            f"got a full checkpoint: {checkpoint}"
        )
    if checkpoint.endswith(".safetensors"):
        folder, name = split_uri(checkpoint)
        storage = open_storage(folder)
        _require(storage, name)
        return LocatedModel(_fetch(storage, name, scratch), join_uri(folder, name), **_about_run(folder))
    parent, last = split_uri(checkpoint)
    if last in _WHICH and not open_storage(checkpoint).list():
        return _from_run(parent, _WHICH[last], scratch)
    return _from_run(checkpoint, _WHICH["final"], scratch)


def _from_run(uri: str, which: str, scratch: Path) -> LocatedModel:
    storage = open_storage(uri)
    for subfolder in _SUBFOLDERS:
        key = f"{subfolder}{which}.safetensors"
        if storage.exists(key):
            return LocatedModel(_fetch(storage, key, scratch), join_uri(storage.uri, key), **_about_run(storage.uri))
    there = [key for key in storage.list() if key.endswith(".safetensors")]
    found = f"it has {', '.join(there)}" if there else "it has no .safetensors file"
    raise CheckpointError(f"--checkpoint: {storage.uri} must be a run's folder with {which}.safetensors, but {found}")


def _require(storage: Storage, name: str) -> None:
    for key in (name, name.removesuffix(".safetensors") + ".json"):
        if not storage.exists(key):
            raise CheckpointError(f"--checkpoint: {join_uri(storage.uri, key)} is not there")


def _fetch(storage: Storage, key: str, scratch: Path) -> Path:
    sidecar = key.removesuffix(".safetensors") + ".json"
    local = storage.local_path(key)
    if local is not None:
        return local
    target = scratch / Path(key).name
    storage.download(key, target)
    storage.download(sidecar, target.with_suffix(".json"))
    return target


def _about_run(folder: str) -> dict[str, Any]:
    """`dataset` and `run` of the run whose weights lie in `folder` or in its `checkpoints/`; empty where there is none.

    A folder of weights alone is no run: its `config.json`, if any, is not a RunSpec.
    """
    if split_uri(folder)[1] == "checkpoints":
        folder = split_uri(folder)[0]
    try:
        spec = open_storage(folder).read_json(CONFIG)
    except NotFoundError:
        return {}
    if not isinstance(spec, dict) or "dataset" not in spec:
        return {}
    return {"dataset": spec["dataset"], "run": split_uri(folder)[1]}


def _from_registry(uri: str, scratch: Path) -> LocatedModel:
    try:
        import mlflow
    except ImportError:
        raise CheckpointError(f"--checkpoint: {uri} needs mlflow, which is not installed") from None
    from mlflow.exceptions import MlflowException

    from podium.trainer.trial.sync import client, mlflow_uri

    tracking_uri = mlflow_uri("runs")
    client(tracking_uri)  # brings a SQLite file up to date, and says nothing about it
    # or MLflow looks for the name in a database of the working directory, which it makes for that
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch), tracking_uri=tracking_uri)
    except MlflowException as error:
        raise CheckpointError(f"--checkpoint: {uri} can't be fetched: {error}") from None
    found = [path for path in sorted(Path(folder).rglob("*.safetensors")) if path.with_suffix(".json").exists()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"--checkpoint: {uri} must hold one model with its .json beside it, got {names}")
    return LocatedModel(found[0], uri)


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


# Our model and tokenizer as lm-eval wants them: log-likelihoods of continuations, batched by length.
#
# Shapes: B rows, T positions, V vocabulary. Imported only where SmallBench runs, since it imports lm-eval.

_TOKENS_AT_ONCE = 4096
"""Positions of one forward pass: bounds the logits, which are V times as large."""


class PodiumLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A model for `lm_eval.evaluate`, for tasks that rank given continuations.

    Context and continuation are tokenised together and cut where the context alone ends, spaces at the context's end
    moved to the continuation, as lm-eval's own Hugging Face model does. A text longer than `max_length` loses its
    beginning; `truncated` counts the examples.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        end_of_text: int,
        max_length: int,
        device: torch.device,
        autocast: AbstractContextManager[Any],
    ) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._end_of_text = end_of_text
        self._max_length = max_length
        self._device = device
        self._autocast = autocast
        self._cut: set[int] = set()

    @property
    def truncated(self) -> int:
        """Examples of the last task that lost the beginning of a prompt."""
        return len(self._cut)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each request's continuation."""
        pairs = [self._encode(*request.args) for request in requests]
        kept = [self._shorten(context, continuation) for context, continuation in pairs]
        self._cut = {requests[i].doc_id for i, (context, _) in enumerate(pairs) if len(kept[i][0]) < len(context)}
        pairs = kept
        # continuations of one token share their input with the question's other answers: run it once
        inputs: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            inputs.setdefault(tuple((context + continuation)[:-1]), []).append(index)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for batch in self._batches(sorted(inputs, key=len, reverse=True)):
            logits_BTV = self._logits(batch)
            for row, tokens in enumerate(batch):
                for index in inputs[tokens]:
                    continuation = pairs[index][1]
                    last = logits_BTV[row, len(tokens) - len(continuation) : len(tokens)]
                    found[index] = _score(last, continuation)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Not offered: perplexity is measured on the study's own data, with its own windows."""
        raise NotImplementedError("tasks that need a rolling log-likelihood are not part of SmallBench")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: no task of SmallBench generates."""
        raise NotImplementedError("tasks that generate are not part of SmallBench")

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        whole = self._ids(bare + continuation)
        prefix = self._ids(bare) if bare else []
        answer = whole[len(prefix) :]
        return whole[: len(prefix)] or [self._end_of_text], answer

    def _shorten(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        excess = len(context) + len(continuation) - 1 - self._max_length
        return context[max(0, excess) :], continuation

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _batches(self, inputs: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        batches: list[list[tuple[int, ...]]] = []
        for tokens in inputs:
            # the longest comes first, so that it sets the width of its batch
            if not batches or (len(batches[-1]) + 1) * len(batches[-1][0]) > _TOKENS_AT_ONCE:
                batches.append([])
            batches[-1].append(tokens)
        return batches

    def _logits(self, batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        # padded on the right: attention is causal, so that no position sees it
        idx_BT = torch.full((len(batch), len(batch[0])), self._end_of_text)
        for row, tokens in enumerate(batch):
            idx_BT[row, : len(tokens)] = torch.tensor(tokens)
        with torch.no_grad(), self._autocast:
            logits_BTV, _ = self._model(idx_BT.to(self._device))
        return logits_BTV  # type: ignore[no-any-return]


def _score(logits_TV: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    targets_T = torch.tensor(continuation, device=logits_TV.device)
    loss = F.cross_entropy(logits_TV.float(), targets_T, reduction="none").double().sum()
    return -float(loss), bool((logits_TV.argmax(-1) == targets_T).all())
