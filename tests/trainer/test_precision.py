"""Which number format a device gets; the devices are told, not had."""

from __future__ import annotations

import pytest
import torch

from podium.trainer.errors import ConfigError
from podium.trainer.precision import choose_device, choose_precision, is_out_of_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_bf16_where_the_gpu_has_it_else_fp16(has_bf16, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    precision = choose_precision("auto", CUDA)
    assert precision.dtype == dtype
    assert precision.needs_scaler == (dtype == torch.float16)


def test_auto_is_fp32_on_a_cpu():
    assert choose_precision("auto", CPU).dtype == torch.float32


def test_fp16_needs_a_gpu():
    with pytest.raises(ConfigError, match="fp16 needs device cuda, got cpu"):
        choose_precision("fp16", CPU)


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"must be one that is here \(cpu\), got 'cuda'"):
        choose_device("cuda")


def test_a_rank_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", local_rank=3) == torch.device("cuda", 3)


def test_memory_that_ran_out_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
