"""What a model costs to run: latency, throughput and memory of its forward pass, on the device to itself.

Forward passes of the whole sequence (prefill), eager, with logits for every position, on random tokens: the time does
not depend on which. Every figure is over measured passes after warm-up; a GPU is synchronised around each.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from podium.trainer.builtin.setup import is_out_of_memory

LATENCY_LENGTHS = (128, 512)
"""Sequence lengths of the latency figures, at batch 1."""
THROUGHPUT_BATCHES = (1, 4, 16, 64)
"""Batches of the throughput figures; on a CPU, where larger ones gain nothing, up to 16."""
CPU_LARGEST_BATCH = 16

_WARM_UP = 3
_PASSES = 50
_FEWEST = 5
_BUDGET_SECONDS = 3.0
"""One figure takes at most about so long: after it, what was measured is enough, but for `_FEWEST` passes."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one forward pass at batch 1, in milliseconds."""

    sequence_length: int
    median_ms: float
    p95_ms: float
    mean_ms: float
    min_ms: float
    std_ms: float
    passes: int
    beyond_training: bool
    """Whether the sequence is longer than those the model was trained on: RoPE allows it, its loss may not be good."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens a second through forward passes of `batch` sequences, by the median pass."""

    batch: int
    sequence_length: int
    tokens_per_second: float
    median_ms: float
    passes: int


def measure_latency(
    model: nn.Module,
    sequence_length: int,
    *,
    vocab_size: int,
    trained_length: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Latency:
    """Median, 95th percentile, mean, least and standard deviation of a forward pass at batch 1."""
    run = _forward(model, 1, sequence_length, vocab_size, device, autocast)
    times = 1000 * np.array(_time(run, device, _PASSES))
    return Latency(
        sequence_length=sequence_length,
        median_ms=float(np.median(times)),
        p95_ms=float(np.percentile(times, 95)),
        mean_ms=float(times.mean()),
        min_ms=float(times.min()),
        std_ms=float(times.std(ddof=1)),
        passes=len(times),
        beyond_training=sequence_length > trained_length,
    )


def measure_throughput(
    model: nn.Module,
    batch: int,
    sequence_length: int,
    *,
    vocab_size: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Throughput | None:
    """Tokens a second at this batch; None where it does not fit into memory."""
    try:
        run = _forward(model, batch, sequence_length, vocab_size, device, autocast)
        times = _time(run, device, _PASSES // 2)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None
    median = float(np.median(times))
    return Throughput(batch, sequence_length, batch * sequence_length / median, 1000 * median, len(times))


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak; a CPU's can't be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> tuple[float | None, str]:
    """(MB, what they are): allocated on a CUDA device since the reset; else the process's resident set, whole."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, "CUDA memory allocated at most"
    if device.type == "mps":
        return None, "the device reports no peak"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return peak / scale, "resident set of the whole process at most, Python and libraries included"


def rows(measured: list[Latency] | list[Throughput]) -> list[dict[str, Any]]:
    """The figures as JSON."""
    return [asdict(one) for one in measured]


def _forward(
    model: nn.Module,
    batch: int,
    sequence_length: int,
    vocab_size: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    idx_BT = torch.randint(vocab_size, (batch, sequence_length), generator=generator).to(device)

    def run() -> None:
        with torch.no_grad(), autocast:
            model(idx_BT)

    return run


def _time(run: Callable[[], None], device: torch.device, passes: int) -> list[float]:
    started = time.perf_counter()
    for _ in range(_WARM_UP):
        run()
        _synchronise(device)
        if time.perf_counter() - started > _BUDGET_SECONDS:
            break
    times: list[float] = []
    while len(times) < _FEWEST or (len(times) < passes and sum(times) < _BUDGET_SECONDS):
        _synchronise(device)
        began = time.perf_counter()
        run()
        _synchronise(device)
        times.append(time.perf_counter() - began)
    return times


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
