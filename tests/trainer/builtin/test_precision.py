"""Which number format a device gets; the devices are told, not had."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from podium.trainer.builtin.config import RuntimeConfig
from podium.trainer.builtin.setup import choose_device, choose_precision, is_out_of_memory, set_up
from podium.trainer.trial.errors import ConfigError

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


def test_on_a_gpu_the_named_attention_kernel_is_the_only_one(monkeypatch):
    seen = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: seen.setdefault("deterministic", True))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    for kernel in ("cudnn", "flash", "mem_efficient", "math"):
        monkeypatch.setattr(
            torch.backends.cuda, f"enable_{kernel}_sdp", lambda on, kernel=kernel: seen.setdefault(kernel, on)
        )
    set_up(RuntimeConfig(attention="cudnn", deterministic=False), CUDA)
    assert seen == {"cudnn": True, "flash": False, "mem_efficient": False, "math": False}
    seen.clear()
    set_up(RuntimeConfig(), CUDA)
    assert seen == {"deterministic": True}


def test_a_kernel_without_determinism_is_refused_where_determinism_is_asked_for():
    with pytest.raises(ValidationError, match="cuDNN's attention has no deterministic kernel"):
        RuntimeConfig(attention="cudnn")
