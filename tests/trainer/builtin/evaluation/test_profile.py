from __future__ import annotations

import contextlib
import time

import pytest
import torch
from torch import nn

from podium.trainer.builtin.evaluation import profile
from podium.trainer.builtin.evaluation.profile import measure_latency, measure_throughput, peak_memory

CPU = torch.device("cpu")


class Sleeper(nn.Module):
    """Takes a known time for every token, and every tenth pass ten times as long."""

    def __init__(self, seconds_per_token: float = 1e-5, *, hiccups: bool = False) -> None:
        super().__init__()
        self.seconds = seconds_per_token
        self.hiccups = hiccups
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, idx_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        assert not torch.is_grad_enabled()
        self.shapes.append(tuple(idx_BT.shape))
        slow = self.hiccups and len(self.shapes) % 10 == 0
        time.sleep(self.seconds * idx_BT.numel() * (10 if slow else 1))
        return idx_BT.float(), None


def latency(model: nn.Module, length: int, trained: int = 256) -> profile.Latency:
    return measure_latency(
        model, length, vocab_size=50, trained_length=trained, device=CPU, autocast=contextlib.nullcontext()
    )


def test_latency_is_of_one_sequence_after_warm_up() -> None:
    model = Sleeper(1e-5)
    found = latency(model, 128)
    assert set(model.shapes) == {(1, 128)}
    assert len(model.shapes) == found.passes + 3
    assert 1.28 <= found.min_ms <= found.median_ms <= found.p95_ms
    assert found.min_ms <= found.mean_ms
    assert found.median_ms < 12


def test_a_hiccup_shows_in_the_percentile_and_not_in_the_median() -> None:
    found = latency(Sleeper(2e-5, hiccups=True), 128)
    assert found.p95_ms > 20
    assert found.median_ms < 20
    assert found.mean_ms > found.median_ms


def test_a_sequence_longer_than_trained_is_said_to_be() -> None:
    assert latency(Sleeper(0.0), 512, trained=256).beyond_training
    assert not latency(Sleeper(0.0), 128, trained=256).beyond_training


def test_a_slow_model_is_measured_fewer_times_but_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_BUDGET_SECONDS", 0.02)
    model = Sleeper(1e-4)
    found = latency(model, 128)
    assert found.passes == 5
    assert len(model.shapes) <= 8


def test_throughput_counts_all_tokens_of_the_batch() -> None:
    model = Sleeper(1e-5)
    found = measure_throughput(model, 4, 64, vocab_size=50, device=CPU, autocast=contextlib.nullcontext())
    assert found is not None
    assert set(model.shapes) == {(4, 64)}
    assert 10_000 < found.tokens_per_second <= 1e5
    assert found.tokens_per_second == pytest.approx(256 / found.median_ms * 1000)


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, idx_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        raise self.error


def test_a_batch_that_does_not_fit_is_no_figure_and_another_error_is_raised() -> None:
    def measure(error: Exception) -> profile.Throughput | None:
        return measure_throughput(Failing(error), 4, 64, vocab_size=50, device=CPU, autocast=contextlib.nullcontext())

    assert measure(torch.OutOfMemoryError("CUDA out of memory")) is None
    with pytest.raises(RuntimeError, match="shapes"):
        measure(RuntimeError("shapes"))


def test_the_peak_on_a_cpu_is_the_whole_process_and_says_so() -> None:
    peak, what = peak_memory(CPU)
    assert peak is not None
    assert 50 < peak < 100_000
    assert "whole process" in what
