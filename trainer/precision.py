"""Device, number format and threads of a run."""

from __future__ import annotations

import gc
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch

from podium.trainer.config import RuntimeConfig
from podium.trainer.errors import ConfigError, Problem


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
