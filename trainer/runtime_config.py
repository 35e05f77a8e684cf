"""How a run's arithmetic is done, as a config; `podium.trainer.precision` sets it up."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.section import Section


class RuntimeConfig(Section):
    """How the arithmetic is done. Part of the fingerprint: it decides the last bits."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the device has it, else fp16 with a gradient scaler, fp32 on a CPU."""
    compile: Literal["auto", "always", "never"] = "auto"
    """auto: compile on CUDA for runs long enough to earn it back."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """`torch.compile`'s mode: reduce-overhead (CUDA graphs) serves small models, max-autotune compiles for long."""
    tune_kernels: bool = False
    """Search more shapes for the compiler's own kernels (coordinate descent): minutes more for some speed."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of PyTorch. Resume is bit-exact only for the same number, so a study states it."""
    deterministic: bool = True
    """On a GPU: kernels that give the same bits every time, which a bit-exact resume takes. They cost some speed."""
    attention: Literal["auto", "cudnn", "flash"] = "auto"
    """On a GPU: whose attention kernel. auto: PyTorch chooses."""
    head_chunk_tokens: int | None = Field(default=None, gt=0)
    """On a GPU: tokens whose logits exist at once in training; null: all of a forward pass. Saves memory, not time."""
    untimed_steps: int = Field(default=0, ge=0)
    """First steps that the training clock leaves out (reported apart), as the 2024 speedruns leave out 10."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention == "cudnn" and self.deterministic:
            raise ValueError("cuDNN's attention has no deterministic kernel: deterministic must be false, got true")
        return self
