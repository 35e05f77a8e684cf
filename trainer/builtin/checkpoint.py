"""Checkpoint files: what they are called, what is in them, and which one a run may go on from.

    ckpt-step-<n>.pt             full: everything from which training goes on bit for bit
    model-step-<n>.safetensors   weights alone, with model-step-<n>.json beside them
    best-model.*, final-model.*  the same two files for the lowest evaluation loss so far, and for the end

A full checkpoint is a zip file, so every part has a CRC; it holds plain types and tensors only and is read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from podium.trainer.builtin.config import FORMAT_VERSION, RunSpec, TrainConfig, load_config
from podium.trainer.builtin.models.build import build_run_model
from podium.trainer.builtin.state import RunState
from podium.trainer.trial.errors import CheckpointError, ConfigError, NotFoundError, Problem, StorageError
from podium.trainer.trial.process import scratch_name
from podium.trainer.trial.result import best_point
from podium.trainer.trial.storage import Storage, open_storage, split_uri, to_json

FULL_KEYS = (
    "format_version",
    "step",
    "preset",
    "mode",
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "config",
    "python_random_state",
    "numpy_random_state",
    "torch_rng_state",
    "cuda_rng_state_if_available",
    "loader_state",
)
"""`scheduler_state_dict` holds what the schedules of a run follow from: the step and its rate, the evaluations so far
(the state of every stop rule), the training clock, the loss scale, and of a mixture what its routers did since the last
record of it and the looks for a collapse."""
SIDECAR_KEYS = ("format_version", "step", "preset", "mode", "config", "metrics_summary")

BEST, FINAL = "best-model", "final-model"
_FULL_NAME = re.compile(r"ckpt-step-(\d+)\.pt")


class DamagedCheckpoint(Exception):  # noqa: N818  not an error by itself: the one before may serve
    """The file is not a whole checkpoint."""


def full_name(step: int) -> str:
    """`ckpt-step-<n>.pt`."""
    return f"ckpt-step-{step}.pt"


def model_name(step: int) -> str:
    """`model-step-<n>`, without the ending."""
    return f"model-step-{step}"


def step_of(name: str) -> int | None:
    """The step of a full checkpoint's file name; None for any other name."""
    match = _FULL_NAME.fullmatch(name)
    return int(match[1]) if match else None


def header(config: TrainConfig, step: int) -> dict[str, Any]:
    """What both outputs have: format_version, step, preset, mode, config."""
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "preset": config.preset,
        "mode": config.mode,
        "config": config.model_dump(mode="json"),
    }


def read_full(path: Path) -> dict[str, Any]:
    """A full checkpoint, on the CPU. Raises DamagedCheckpoint, or CheckpointError where it is of another format."""
    check_is_full(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # torch itself does not compare the sums
        if bad is not None:
            raise DamagedCheckpoint(f"{path.name}: {bad} does not have its CRC")
        # on the CPU: a copy on the GPU is what makes a resume run out of memory
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, UnpicklingError) as error:
        raise DamagedCheckpoint(f"{path.name}: {error or type(error).__name__}") from None
    if not isinstance(state, dict) or "format_version" not in state:
        raise CheckpointError(f"{path.name}: must be a checkpoint of Podium, got a file without format_version")
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path.name}: format_version must be {FORMAT_VERSION}, got {state['format_version']!r}")
    missing = [key for key in FULL_KEYS if key not in state]
    if missing:
        raise DamagedCheckpoint(f"{path.name}: has no {', '.join(missing)}")
    return state


def check_is_full(name: str) -> None:
    """Refuse a model-only file: it has no optimizer, loader or random state. Raises CheckpointError."""
    if not name.endswith(".pt"):
        raise CheckpointError(
            f"--resume takes a full checkpoint (ckpt-step-<n>.pt), got {name}"
            + (": weights alone can't be trained on bit for bit" if name.endswith(".safetensors") else "")
        )


def check_fits(state: dict[str, Any], config: TrainConfig, name: str) -> None:
    """Refuse a checkpoint of another mode or architecture. Raises CheckpointError with every difference."""
    problems = []
    if state["mode"] != config.mode:
        problems.append(Problem("mode", f"must be {config.mode!r}, got {state['mode']!r}"))
    problems += [
        Problem(f"model.{field}", f"must be {mine!r}, got {theirs!r}")
        for field, mine, theirs in differences(config.model_dump(mode="json")["model"], state["config"]["model"])
        # how the dimensions were asked for, which are compared themselves, and where the first weights came from
        if field not in ("allocation", "source")
    ]
    if problems:
        raise CheckpointError(problems, source=f"{name}: a checkpoint of another architecture")


def differences(mine: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted field, mine, theirs) for every field that differs."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def load_model(path: Path) -> tuple[nn.Module, TrainConfig]:
    """A model in evaluation mode, on the CPU, from `<name>.safetensors` and the `<name>.json` beside it.

    Raises CheckpointError where a file is missing, damaged or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise CheckpointError(f"a model is <name>.safetensors with <name>.json beside it, got {path.name}")
    sidecar = path.with_suffix(".json")
    try:
        about = json.loads(sidecar.read_text())
        weights = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{Path(error.filename or path)}: not there") from None
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: damaged: {error}") from None
    missing = [key for key in SIDECAR_KEYS if key not in about]
    if missing:
        raise CheckpointError(f"{sidecar.name}: has no {', '.join(missing)}")
    if about["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{sidecar.name}: format_version must be {FORMAT_VERSION}, got {about['format_version']}")
    config = load_config(about["config"], source=sidecar.name)
    model = build_run_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path.name}: does not fit its {sidecar.name}: {error}") from None
    return model.eval(), config


# Writing beside training: jobs in the order given, on one thread, whose failure reaches the training thread.

Job = Callable[[], None]

_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0, 60.0)
"""A store that is away for some minutes costs no trial."""


class BackgroundWriter:
    """Runs jobs one after the other. Jobs that the store refuses for the moment are tried again.

    After a job has failed for good none is run any more, and the next call raises what it raised.
    """

    def __init__(self, retry_seconds: tuple[float, ...] = _RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._jobs: queue.Queue[tuple[Job, Future[None]] | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._giving_up = threading.Event()
        self._last: Future[None] | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future[None]:
        """Run the job after those before it."""
        if self._failure is not None:
            raise self._failure
        self._last = Future()
        self._jobs.put((job, self._last))
        return self._last

    def drain(self) -> None:
        """Wait until every job is done."""
        if self._last is not None:
            self._last.result()

    def close(self, *, give_up: bool = False) -> None:
        """End the thread after the jobs at hand; `give_up`: none of them is tried a second time."""
        if give_up:
            self._giving_up.set()
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                if self._failure is not None:
                    raise self._failure
                self._try(job)
                done.set_result(None)
            except BaseException as error:  # noqa: BLE001  handed to the training thread
                self._failure = error
                done.set_exception(error)

    def _try(self, job: Job) -> None:
        for seconds in self._retry_seconds:
            try:
                return job()
            except NotFoundError:
                raise
            except StorageError as error:
                print(f"writing failed, again in {seconds:g} s: {error}", flush=True)
                if self._giving_up.wait(seconds):
                    raise
        return job()


# Saving off the training thread: a copy of the state in the machine's memory, then files, written while training runs.
#
# The copy goes into buffers that are kept, because fresh memory costs a page fault every 4 kB, several times the copy.


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
        temp = (target.parent if target else self._scratch) / scratch_name(key)
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


# Where a run starts from: the newest whole checkpoint of its own, one that was named, or nothing.

AUTO = "auto"

_MAY_CHANGE = (
    "max_steps",
    "max_tokens",
    "evaluation.",
    "checkpoint.",
    "stop.",
    "runtime.",
    "preset",
    "batch.micro_batch",
    "batch.fit_memory",
)
"""What may differ when a run goes on in its folder: how long it is, how it is watched and where it computes."""


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from."""

    state: dict[str, Any]
    name: str
    own: bool
    """Whether it is this run's own, so that its folder's files up to that step are this run's too."""


def find_start(checkpoints: Storage, spec: RunSpec, resume: str | None, scratch: Path) -> Start | None:
    """The start for `--resume`: `auto` (own newest, else the spec's start_checkpoint), a path or URI, or None.

    `checkpoints` is the folder of the run's own. Raises CheckpointError where the checkpoint does not fit or none of
    those there is whole, ConfigError where the run's own was made by a config that trains something else.
    """
    if resume is None:
        return None
    if resume == AUTO:
        own = _newest(checkpoints, scratch)
        if own is not None:
            check_fits(own.state, spec.config, own.name)
            _check_same_run(own, spec.config)
            return own
        if spec.start_checkpoint is None:
            return None
        resume = spec.start_checkpoint
    start = _named(resume, checkpoints, scratch)
    check_fits(start.state, spec.config, start.name)
    for field, mine, theirs in _config_differences(start, spec.config):
        print(f"{start.name} was made with {field} = {theirs!r}, this run has {mine!r}", flush=True)
    return start


def adopt_best(start: Start, uri: str, checkpoints: Storage) -> None:
    """Copy the best model so far from beside another run's checkpoint, where it is the one the checkpoint knows of."""
    best = best_point(RunState.from_state_dict(start.state["scheduler_state_dict"]["run"]).points)
    source = open_storage(split_uri(uri)[0])
    try:
        about = source.read_json(f"{BEST}.json")
        if best is None or about["step"] != best.step:
            return
        for ending in ("safetensors", "json"):
            checkpoints.write_bytes(f"{BEST}.{ending}", source.read_bytes(f"{BEST}.{ending}"))
    except NotFoundError:
        return


def _newest(checkpoints: Storage, scratch: Path) -> Start | None:
    steps = sorted((step for key in checkpoints.list() if (step := step_of(key)) is not None), reverse=True)
    problems = []
    for step in steps:
        name = full_name(step)
        try:
            state = _read(checkpoints, name, scratch)
        except DamagedCheckpoint as damage:
            problems.append(Problem("", str(damage)))
            print(f"warning: damaged checkpoint: {damage}; going back to the one before", flush=True)
            continue
        return Start(state, name, own=True)
    if problems:
        raise CheckpointError(problems, source=f"{checkpoints.uri}: no whole checkpoint")
    return None


def _named(resume: str, checkpoints: Storage, scratch: Path) -> Start:
    folder, name = split_uri(resume)
    check_is_full(name)
    try:
        state = _read(open_storage(folder), name, scratch)
    except NotFoundError:
        raise CheckpointError(f"--resume must be 'auto' or a full checkpoint, got {resume!r}: not there") from None
    except DamagedCheckpoint as damage:
        raise CheckpointError(f"damaged: {damage}") from None
    return Start(state, name, own=folder == checkpoints.uri)


def _read(folder: Storage, name: str, scratch: Path) -> dict[str, Any]:
    path = folder.local_path(name)
    if path is not None:
        if not path.is_file():
            raise NotFoundError(f"{path}: not there")
        return read_full(path)
    copy = scratch / name
    folder.download(name, copy)
    try:
        return read_full(copy)
    finally:
        copy.unlink()


def _config_differences(start: Start, config: TrainConfig) -> list[tuple[str, Any, Any]]:
    found = differences(config.model_dump(mode="json"), start.state["config"])
    return [difference for difference in found if not difference[0].startswith("model.")]


def _check_same_run(start: Start, config: TrainConfig) -> None:
    problems = []
    for field, mine, theirs in _config_differences(start, config):
        if field.startswith(_MAY_CHANGE):
            print(f"{start.name} was made with {field} = {theirs!r}, now {mine!r}", flush=True)
        else:
            problems.append(Problem(field, f"must be {theirs!r} as in {start.name}, got {mine!r}"))
    if problems:
        raise ConfigError(
            [*problems, Problem("", "another --run-name starts afresh; --resume PATH takes the checkpoint as it is")],
            source=f"the run in this folder was made by another config ({start.name})",
        )
