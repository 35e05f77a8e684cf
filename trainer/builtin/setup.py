"""What a run is made of: device, data, model, optimizer; built from a config in an order that seeds decide."""

from __future__ import annotations

import gc
import os
import random
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from podium.trainer.builtin.checks import check_data
from podium.trainer.builtin.config import RuntimeConfig, StepShape, TrainConfig
from podium.trainer.builtin.data.loader import SequenceLoader, evaluation_domains, rank_slice
from podium.trainer.builtin.data.manifest import TOKEN_BYTES, load_manifest
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.models.build import build_run_model, start_weights
from podium.trainer.builtin.models.moe import Mixture
from podium.trainer.builtin.optim.build import Optimizer, build_optimizer
from podium.trainer.builtin.routing import RouterMonitor
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.storage import open_storage

# Models that want to know which step comes: an addition to the models' contract that most need not know of.


@runtime_checkable
class StepAware(Protocol):
    """A model, a user's own too, that is told every optimizer step before it.

    Where parameters are without a gradient in some steps, it has `changes_layers = True` besides: gradients are then
    averaged over ranks by those that have one, which must be the same on every rank.
    """

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Step `step` of `steps` (1 … steps) comes. What is decided here must follow from these three alone, so that
        every rank and every resumed run decides alike."""


def begin_step(model: nn.Module, step: int, steps: int, seed: int) -> None:
    """Tell the model, if it wants to know."""
    if isinstance(model, StepAware):
        model.begin_step(step, steps, seed)


@runtime_checkable
class Projected(Protocol):
    """A model that brings its weights back to where they belong after the optimizer has moved them."""

    def after_step(self, step: int) -> None:
        """Optimizer step `step` (from 1) is done. The same weights must follow on every rank."""


def after_step(model: nn.Module, step: int) -> None:
    """Tell the model, if it wants to know."""
    if isinstance(model, Projected):
        model.after_step(step)


@runtime_checkable
class ChunkedHead(Protocol):
    """A model whose logits need not all exist at once in training."""

    head_chunk_tokens: int | None
    """Tokens whose logits exist at once; None: all of a forward pass."""


# Device, number format and threads of a run.


@dataclass(frozen=True)
class Precision:
    """The number format of matrix products; weights and optimizer state are fp32 always."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """A context for forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients underflow without a loss scale."""
        return self.dtype == torch.float16


def choose_device(requested: str, local_rank: int = 0) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU. Raises ConfigError for a device that is not here."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        requested = next(kind for kind, here in available.items() if here)
    if not available[requested]:
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(Problem("runtime.device", f"must be one that is here ({here}), got {requested!r}"))
    return torch.device(requested, local_rank) if requested == "cuda" else torch.device(requested)


def choose_precision(requested: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the device has it, else fp16 with a gradient scaler; fp32 on a CPU."""
    if requested == "auto":
        if device.type == "cuda":
            # including_emulation: a V100 emulates bf16 slower than its fp16
            requested = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            requested = "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise ConfigError(Problem("runtime.precision", f"fp16 needs device cuda, got {device.type}"))
    return Precision(device, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[requested])


def set_up(runtime: RuntimeConfig, device: torch.device) -> None:
    """Threads, and on a GPU which kernels: without deterministic ones a resumed run differs in its last bits."""
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
        with suppress(RuntimeError):  # the pool between operations can be sized only before its first use
            torch.set_num_interop_threads(runtime.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if runtime.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it serves debugging, and costs a pass
        torch.set_float32_matmul_precision("high")
        if runtime.attention != "auto":
            for name, enable in (
                ("cudnn", torch.backends.cuda.enable_cudnn_sdp),
                ("flash", torch.backends.cuda.enable_flash_sdp),
                ("efficient", torch.backends.cuda.enable_mem_efficient_sdp),
                ("math", torch.backends.cuda.enable_math_sdp),
            ):
                enable(name == runtime.attention)


def release_memory() -> None:
    """Give back what objects of a run that is over still hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in the machine's own memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


# One optimizer step: accumulation, clipping, loss scale.
#
# B sequences of this rank's share  b of one forward pass  T tokens


def passes(sequences: int, length: int, micro_tokens: int | None) -> list[int]:
    """Sequences of each forward pass of at most `micro_tokens`, none where that is null; two sizes at most."""
    most = sequences if micro_tokens is None else max(1, micro_tokens // length)
    count = -(-sequences // most)
    size, rest = divmod(sequences, count)
    return [size + 1] * rest + [size] * (count - rest)


class Stepper:
    """Takes optimizer steps on the batches it is given."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        precision: Precision,
        *,
        micro_tokens: int | None = None,
        max_grad_norm: float | None,
        ranks: Ranks = Ranks(),  # noqa: B008  frozen
    ) -> None:
        """`model` is `Ranks.wrap`'s; a forward pass has at most `micro_tokens`, by default all of this rank's share."""
        self._model = model
        self._optimizer = optimizer
        self._precision = precision
        self._micro_tokens = micro_tokens
        self._max_grad_norm = max_grad_norm
        self._ranks = ranks
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scaler = torch.amp.GradScaler(precision.device.type) if precision.needs_scaler else None

    def step(
        self,
        learning_rate: float,
        x_BT: npt.NDArray[np.int64],
        y_BT: npt.NDArray[np.int64],
        *,
        sequences: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(loss in nats, gradient norm before clipping), scalars on the device; over ranks the losses' mean counts.

        `sequences` is the step's number of them over all ranks, by default as many on every rank as here.
        """
        self._optimizer.set_learning_rate(learning_rate)
        share = (sequences or len(x_BT) * self._ranks.world_size) / self._ranks.world_size
        loss = self._accumulate(self._to_device(x_BT), self._to_device(y_BT), share)
        if self.scaler is not None:
            self.scaler.unscale_(self._optimizer)  # type: ignore[arg-type]
        norm = self._gradient_norm()
        divide_by = self._clip_factor(norm)
        if self.scaler is not None:
            self.scaler.step(self._optimizer, divide_by=divide_by)  # type: ignore[arg-type]
            self.scaler.update()
        else:
            self._optimizer.step(divide_by=divide_by)
        self._optimizer.zero_grad()
        return loss, norm

    def _accumulate(self, x_BT: Tensor, y_BT: Tensor, share: float) -> Tensor:
        """Gradients of the mean over the global batch; `share` is how many sequences a rank has on average."""
        sizes = passes(len(x_BT), x_BT.shape[1], self._micro_tokens)
        total: Tensor | None = None
        for index, (x_bT, y_bT) in enumerate(zip(torch.split(x_BT, sizes), torch.split(y_BT, sizes), strict=True)):
            with nullcontext() if index == len(sizes) - 1 else self._ranks.without_sync(self._model):
                with self._precision.autocast():
                    _, loss = self._model(x_bT, y_bT)
                # every sequence of a step counts alike, however many there are in this pass and on this rank
                part = loss if len(x_bT) == share else loss / (share / len(x_bT))
                (part if self.scaler is None else self.scaler.scale(part)).backward()
            # a copy: under CUDA graphs the next pass writes its loss to the same place
            total = part.detach().clone() if total is None else total + part.detach()
        self._ranks.finish_gradients(self._model)
        assert total is not None
        return total

    def _gradient_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norm

    def _clip_factor(self, norm: Tensor) -> Tensor | None:
        if self._max_grad_norm is None:
            return None
        factor = (norm / self._max_grad_norm).clamp(min=1.0)
        if factor.device.type == "cpu" and factor.item() == 1.0:
            return None  # no division costs less than one by 1; on a GPU, to ask would cost more
        return factor

    def _to_device(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(tokens)
        if self._precision.device.type == "cuda":
            return tensor.pin_memory().to(self._precision.device, non_blocking=True)
        return tensor.to(self._precision.device)


# Random state: set from a seed, taken for a checkpoint, put back on resume.


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The four random states under a checkpoint's keys, in plain types, so that `weights_only=True` can load them."""
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    name, keys, position, has_gauss, gauss = state
    assert not isinstance(keys, str)
    return {
        "python_random_state": random.getstate(),
        "numpy_random_state": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state_if_available": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` took. A CUDA state is used where its number of devices is the present one."""
    version, internal, gauss_next = state["python_random_state"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy_random_state"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch_rng_state"])
    cuda = state["cuda_rng_state_if_available"]
    if cuda is not None and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


# Which sequence length an optimizer step has: moved up when the training loss stands still. Without torch.
#
# A function of the steps' losses alone, and decided only at steps that are known beforehand: so every rank decides
# alike, and a resumed run decides as one that was never interrupted.


class Curriculum:
    """The shape of each step of a run; without a curriculum in the config, always the same."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.curriculum
        self._steps = config.steps
        self._sequences, self._full = config.batch.sequences, config.data.sequence_length
        self._index = 0
        self._since = 0
        self._losses: list[float] = []

    @property
    def shape(self) -> StepShape:
        """Of the next step."""
        return self.shapes[self._index]

    @property
    def shapes(self) -> list[StepShape]:
        """Of the whole run, in the order in which they come."""
        if self._config is None:
            return [StepShape(self._sequences, self._full)]
        return [self._config.shape(self._sequences, self._full, length) for length in self._config.lengths]

    def judges_at(self, step: int) -> bool:
        """Whether the length of what follows is decided once `step` is done, for which its loss must be known."""
        if self._config is None or self._index == len(self._config.lengths) - 1:
            return False
        at_length = step - self._since
        return step >= self._deadline or (at_length >= 2 * self._config.window and at_length % self._config.window == 0)

    def note(self, loss: float) -> None:
        """The training loss of the next step, in nats."""
        if self._config is not None:
            self._losses = [*self._losses, loss][-2 * self._config.window :]

    def judge(self, step: int) -> bool:
        """Decide after `step`, whose loss was noted; returns whether the length changed. Only where `judges_at`."""
        assert self._config is not None
        if step < self._deadline and not self._stands_still():
            return False
        self._index += 1
        self._since = step
        self._losses = []
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that future decisions depend on."""
        return {"index": self._index, "since": self._since, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._index, self._since, self._losses = state["index"], state["since"], list(state["losses"])

    @property
    def _deadline(self) -> float:
        assert self._config is not None
        if self._config.latest_fraction is None:
            return float("inf")
        moves = len(self._config.lengths) - 1
        return round(self._config.latest_fraction * self._steps * (self._index + 1) / moves)

    def _stands_still(self) -> bool:
        assert self._config is not None
        window = self._config.window
        before, last = self._losses[-2 * window : -window], self._losses[-window:]
        return sum(before) / window - sum(last) / window < self._config.min_improvement


COMPILE_PAYS_STEPS = 1000
"""On a GPU compiling costs about a minute and saves about half of a step of 0.1 s and more."""


@dataclass
class Parts:
    """The living objects of one run."""

    config: TrainConfig
    precision: Precision
    model: nn.Module
    wrapped: nn.Module
    """The same model, averaging gradients over ranks."""
    optimizer: Optimizer
    stepper: Stepper
    curriculum: Curriculum
    loader: SequenceLoader
    data: Path
    token_bytes: npt.NDArray[np.integer] | None
    """UTF-8 length of every token."""
    routing: RouterMonitor | None = None
    """Of a mixture of experts."""
    evaluation_domains: tuple[str, ...] = ()
    """The domain of each sequence of the declared evaluation; none where the data has none."""


def build_parts(config: TrainConfig, data: Path, precision: Precision, ranks: Ranks, *, fresh: bool = True) -> Parts:
    """Build a run at its first step. `config` is resolved, `data` a local prepared dataset.

    Not `fresh`: a checkpoint follows, so that pretrained weights are not fetched.

    Raises ConfigError and DataError where config, data and ranks do not go together.
    """
    check_data(config, load_manifest(open_storage(str(data))))
    config.batch.accumulation_steps(ranks.world_size)  # refuses ranks among which the batch does not divide
    loader = SequenceLoader(
        data,
        config.data.train_split,
        sequence_length=config.data.sequence_length,
        batch_sequences=config.batch.sequences,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=config.data.order == "shuffled",
        balance=config.data.balance_tokens,
    )
    seed_everything(config.seed)
    # on the CPU first: the same seed gives the same weights on every device
    model = build_run_model(config)
    if fresh:
        start_weights(model, config.model)
    if isinstance(model, ChunkedHead):
        model.head_chunk_tokens = config.runtime.head_chunk_tokens
    model.to(precision.device)
    if compiles(config, precision):
        if config.runtime.tune_kernels:
            torch._inductor.config.coordinate_descent_tuning = True
        model.compile(mode=None if config.runtime.compile_mode == "default" else config.runtime.compile_mode)
    optimizer = build_optimizer(model, config.optimizer, ranks=ranks, compiled=compiles(config, precision))
    wrapped = ranks.wrap(model, precision.device)
    stepper = Stepper(
        wrapped,
        optimizer,
        precision,
        micro_tokens=micro_tokens(config),
        max_grad_norm=config.max_grad_norm,
        ranks=ranks,
    )
    path = data / TOKEN_BYTES
    token_bytes = np.load(path) if path.is_file() else None
    curriculum = Curriculum(config)
    routing = None
    if isinstance(model, Mixture) and config.mode == "moe":
        routing = RouterMonitor(model, config, loader.names, precision.device)
    domains = evaluation_domains(
        data,
        config.data.validation_split,
        sequence_length=config.data.sequence_length,
        sequences=config.evaluation.sequences,
    )
    built = (precision, model, wrapped, optimizer, stepper, curriculum, loader, data, token_bytes)
    return Parts(config, *built, routing=routing, evaluation_domains=domains)


def micro_tokens(config: TrainConfig) -> int | None:
    """The most tokens of one forward pass on one device."""
    micro = config.batch.micro_batch
    return None if micro is None else micro * config.data.sequence_length


def compiles(config: TrainConfig, precision: Precision) -> bool:
    """Whether the model is compiled: `auto` where the run is long enough to earn the time back."""
    if config.runtime.compile == "auto":
        # a mixture's shapes follow from its routing: there is nothing to compile for
        return config.mode == "dense" and precision.device.type == "cuda" and config.steps >= COMPILE_PAYS_STEPS
    return config.runtime.compile == "always"


def warm_up(parts: Parts, ranks: Ranks) -> None:
    """Make the compiler see every shape of the run before the clock starts; changes no weight and no random state."""
    device = parts.precision.device
    for sequences, length in training_shapes(parts, ranks):
        tokens_bT = torch.zeros(sequences, length, dtype=torch.int64, device=device)
        with parts.precision.autocast():
            _, loss = parts.wrapped(tokens_bT, tokens_bT)
        loss.backward()
        parts.optimizer.zero_grad()
    parts.optimizer.warm_up()
    length = parts.config.data.sequence_length
    evaluated_BT = torch.zeros(parts.config.evaluation.batch_sequences, length, dtype=torch.int64, device=device)
    parts.model.eval()
    with torch.no_grad(), parts.precision.autocast():
        parts.model(evaluated_BT)
    parts.model.train()


def training_shapes(parts: Parts, ranks: Ranks) -> list[tuple[int, int]]:
    """(sequences, length) of every forward pass that this rank's training will make, each once."""
    found: list[tuple[int, int]] = []
    most = micro_tokens(parts.config)
    for shape in parts.curriculum.shapes:
        first, last = rank_slice(shape.sequences, ranks.rank, ranks.world_size)
        found += [(sequences, shape.length) for sequences in passes(last - first, shape.length, most)]
    return list(dict.fromkeys(found))
