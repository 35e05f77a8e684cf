"""Saving off the training thread: a copy of the state in the machine's memory, then files, written while training runs.

The copy goes into buffers that are kept, because fresh memory costs a page fault every 4 kB, several times the copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from podium.trainer.background import BackgroundWriter
from podium.trainer.checkpoint import BEST, FINAL, full_name, header, model_name, step_of
from podium.trainer.config import TrainConfig
from podium.trainer.storage import SCRATCH, Storage, to_json

_SCRATCH = f"{SCRATCH}checkpoint-"


class Snapshot:
    """A copy of a tree of tensors in the machine's memory, taken again and again into the same buffers."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def take(self, tree: Any) -> Any:
        """The tree with every tensor replaced by its copy; other values are shared."""
        tensors = list(_tensors(tree))
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if [(t.shape, t.dtype) for t in tensors] != [(b.shape, b.dtype) for b in self._buffers]:
            self._buffers = [torch.empty(t.shape, dtype=t.dtype, pin_memory=on_gpu) for t in tensors]
        for tensor, buffer in zip(tensors, self._buffers, strict=True):
            buffer.copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        copies = iter(self._buffers)
        return _walk(tree, lambda _: next(copies))


class CheckpointWriter:
    """The files of one run's checkpoints. Saving returns once the state is copied; `drain` of the writer ends it."""

    def __init__(
        self,
        folder: Storage,
        config: TrainConfig,
        writer: BackgroundWriter,
        scratch: Path,
        *,
        keep_last: int | None,
    ) -> None:
        """`folder` is where the files lie. `keep_last` None keeps every full checkpoint."""
        self._folder = folder
        self._config = config
        self._writer = writer
        self._scratch = scratch
        self._keep_last = keep_last
        self._full = Snapshot()
        self._full_job: Future[None] | None = None
        self._best, self._spare = Snapshot(), Snapshot()
        self._best_job: Future[None] | None = None
        self._best_weights: dict[str, Tensor] | None = None
        self._best_about: dict[str, Any] = {}
        self._remove_leftovers()

    def reserve(self, parts: dict[str, Any]) -> None:
        """Take the memory for copies of these parts now, so that the first checkpoint stalls no longer than others."""
        self._full.take({**header(self._config, 0), **parts})
        self._best.take(parts["model_state_dict"])

    def hold_best(self, step: int, weights: dict[str, Tensor], summary: dict[str, Any]) -> None:
        """Remember the weights as the best so far; the next save writes them before itself."""
        self._best_weights = self._best.take(weights)
        self._best_about = self._about(step, summary)

    def write_best(self) -> None:
        """Write the best weights, if they are not written yet."""
        if self._best_weights is None:
            return
        weights, about = self._best_weights, self._best_about
        self._best_weights = None
        # the next best goes into the other buffers while this one is being written: so they must be free by now
        if self._best_job is not None:
            self._best_job.result()
        self._best, self._spare = self._spare, self._best
        self._best_job = self._writer.submit(lambda: self._write_model(BEST, weights, about))

    def save(self, step: int, state: dict[str, Any], summary: dict[str, Any], before: Callable[[], None]) -> None:
        """Write a full checkpoint and its weights; `before` runs on the writer's thread before they appear."""
        self.write_best()
        if self._full_job is not None:
            self._full_job.result()  # the buffers are in use until the checkpoint before is written
        copy = self._full.take({**header(self._config, step), **state})
        about = self._about(step, summary)

        def write() -> None:
            before()
            self._write_model(model_name(step), copy["model_state_dict"], about)
            self._write_file(full_name(step), lambda path: torch.save(copy, path))
            self._retire(step)

        self._full_job = self._writer.submit(write)

    def save_final(self, step: int, weights: dict[str, Tensor], summary: dict[str, Any]) -> None:
        """Write the last weights; training is over, so that they need no copy."""
        self.write_best()
        weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        about = self._about(step, summary)
        self._writer.submit(lambda: self._write_model(FINAL, weights, about))

    def discard_after(self, step: int) -> None:
        """Remove numbered checkpoints past `step`: the run goes on from there and will make them again."""
        for key in self._folder.list():
            later = step_of(key)
            if later is not None and later > step:
                self._folder.delete(full_name(later))

    def _about(self, step: int, summary: dict[str, Any]) -> dict[str, Any]:
        return {**header(self._config, step), "metrics_summary": summary}

    def _write_model(self, name: str, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        # One key: several would be written in a random order, and equal weights should be equal files.
        keys = {"format": "pt"}
        self._write_file(f"{name}.safetensors", lambda path: save_file(weights, path, metadata=keys))
        self._folder.write_bytes(f"{name}.json", to_json(about))

    def _write_file(self, key: str, write: Callable[[Path], None]) -> None:
        """Make the file beside its place and rename it, or make it locally and upload it: whole or not at all."""
        target = self._folder.local_path(key)
        temp = (target.parent if target else self._scratch) / f"{_SCRATCH}{os.getpid()}-{key}"
        temp.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temp)
            temp.chmod(0o644)  # safetensors makes files that only their owner may read
            if target is None:
                self._folder.upload(temp, key)
            else:
                _sync(temp)
                temp.replace(target)
                _sync(target.parent)
        finally:
            temp.unlink(missing_ok=True)

    def _retire(self, newest: int) -> None:
        if self._keep_last is None:
            return
        steps = sorted(step for key in self._folder.list() if (step := step_of(key)) is not None and step <= newest)
        for step in steps[: -self._keep_last]:
            self._folder.delete(full_name(step))

    def _remove_leftovers(self) -> None:
        """Files that a killed writer left half made. The run's lease says that no other writer lives."""
        place = self._folder.local_path(full_name(0))
        if place is None or not place.parent.is_dir():
            return
        for path in place.parent.glob(f"{_SCRATCH}*"):
            with suppress(FileNotFoundError):
                path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value)


def _walk(tree: Any, replace: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return replace(tree)
    if isinstance(tree, dict):
        return {key: _walk(value, replace) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_walk(value, replace) for value in tree]
    return tree
