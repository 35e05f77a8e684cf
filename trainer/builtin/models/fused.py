"""Operations with hand-written gradients for eager runs on a CPU, where PyTorch has no fused kernel for them.

    B sequences  T tokens  D d_model  F d_ff  V vocabulary  H head size  R rows (B·T, or some of them)

Each is the textbook operation; only the number of passes over memory differs. Under `torch.compile` and on a GPU the
plain expression is used instead: there the compiler, or a kernel of PyTorch's own, fuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = 2**25
"""Logits that exist at once in `linear_cross_entropy`: 128 MiB in fp32. Fewer, and the weight's gradient is read and
written more often than the logits are; more, and every pass over the logits starts with page faults."""


def wants_plain(x: Tensor) -> bool:
    """Whether something else than this module fuses operations on `x`."""
    return x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def rms_norm(x: Tensor, gain_D: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) · gain over the last dimension (Zhang & Sennrich, 2019); None: no gain."""
    if wants_plain(x):
        return F.rms_norm(x, x.shape[-1:], gain_D, eps)
    return _RMSNorm.apply(x, gain_D, eps)  # type: ignore[no-untyped-call,no-any-return]


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, where the last dimension holds gate and up side by side: (…, 2F) to (…, F) (Shazeer, 2020)."""
    if wants_plain(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call,no-any-return]


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)² (So et al., 2021)."""
    if wants_plain(x):
        positive: Tensor = F.relu(x)
        return positive * positive
    return _ReLUSquared.apply(x)  # type: ignore[no-untyped-call,no-any-return]


def rotate(x_BTNH: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
    """Rotary position embedding, the two halves of a head forming the pairs (Su et al., 2021); h = H / 2."""
    if wants_plain(x_BTNH):
        return _rotate(x_BTNH, cos_T1h, sin_T1h)
    return _Rotate.apply(x_BTNH, cos_T1h, sin_T1h)  # type: ignore[no-untyped-call,no-any-return]


def linear_cross_entropy(x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, chunk_rows: int | None = None) -> Tensor:
    """Mean cross-entropy in nats of softmax(x·Wᵀ) against `targets_R`.

    On a CPU the logits are made a chunk of rows at a time and become their own gradient in place, so that R × V numbers
    are never stored (the method of Liger Kernel's fused linear cross-entropy, Hsu et al., 2024). Elsewhere they are so
    where `chunk_rows` says how many rows to make at a time; it saves memory for a larger pass, and no time.
    """
    if chunk_rows is not None and chunk_rows < len(x_RD) and wants_plain(x_RD):
        return _ChunkedCrossEntropy.apply(x_RD, weight_VD, targets_R, chunk_rows)  # type: ignore[no-untyped-call,no-any-return]
    if wants_plain(x_RD):
        logits_RV = F.linear(x_RD, weight_VD)
        logits_RV = logits_RV.float() if logits_RV.dtype.itemsize < 4 else logits_RV
        loss: Tensor = F.cross_entropy(logits_RV, targets_R)
        return loss
    return _LinearCrossEntropy.apply(x_RD, weight_VD, targets_R)  # type: ignore[no-untyped-call,no-any-return]


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_D: Tensor | None, eps: float) -> Tensor:
        # vector_norm is one pass that stores nothing; x.square().mean() would write a copy of x
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse_rms = norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain_D, inverse_rms)
        return x * inverse_rms if gain_D is None else (x * inverse_rms).mul_(gain_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, gain_D, inverse_rms = ctx.saved_tensors
        unit = x * inverse_rms
        grad_unit = grad if gain_D is None else grad * gain_D
        dot = torch.linalg.vecdot(grad_unit, unit).unsqueeze(-1).mul_(1 / x.shape[-1])
        if gain_D is None:
            return unit.mul_(dot).neg_().add_(grad).mul_(inverse_rms), None, None
        grad_gain = torch.linalg.vecdot(grad.flatten(0, -2), unit.flatten(0, -2), dim=0)
        grad_x = grad_unit.sub_(unit.mul_(dot)).mul_(inverse_rms)
        return grad_x, grad_gain, None


class _ReLUSquared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive: Tensor = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(grad, positive).mul_(2)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grads = torch.empty_like(gate_up)
        grad_gate, grad_up = grads.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grads


def _rotate(x_BTNH: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
    first, second = x_BTNH.chunk(2, dim=-1)
    turned = torch.cat((first * cos_T1h - second * sin_T1h, second * cos_T1h + first * sin_T1h), dim=-1)
    return turned.to(x_BTNH.dtype)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x_BTNH: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1h, sin_T1h)
        return _turn(x_BTNH, cos_T1h, sin_T1h, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTNH: Tensor) -> tuple[Tensor, None, None]:
        cos_T1h, sin_T1h = ctx.saved_tensors
        return _turn(grad_BTNH, cos_T1h, sin_T1h, 1), None, None  # a rotation's gradient is the rotation back


def _turn(x_BTNH: Tensor, cos_T1h: Tensor, sin_T1h: Tensor, sign: int) -> Tensor:
    turned = torch.empty(x_BTNH.shape, dtype=x_BTNH.dtype)
    (first, second), (out_first, out_second) = x_BTNH.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos_T1h, out=out_first).addcmul_(second, sin_T1h, value=sign)
    torch.mul(second, cos_T1h, out=out_second).addcmul_(first, sin_T1h, value=-sign)
    return turned


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> Tensor:
        rows, vocabulary = x_RD.shape[0], weight_VD.shape[0]
        size = min(rows, max(1, _CHUNK_ELEMENTS // vocabulary))
        logits_buffer = x_RD.new_empty(size, vocabulary)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_x_RD = torch.empty_like(x_RD) if needs_grad else None
        grad_weight_VD: Tensor | None = None
        total = x_RD.new_zeros((), dtype=torch.float64)  # the sum of many chunks, in few operations
        for start in range(0, rows, size):
            x_rD, targets_r1 = x_RD[start : start + size], targets_R[start : start + size, None]
            logits_rV = torch.mm(x_rD, weight_VD.T, out=logits_buffer[: len(x_rD)])
            at_target_r1 = logits_rV.gather(1, targets_r1)
            peak_r1, peak_at_r1 = logits_rV.max(dim=1, keepdim=True)
            torch.ops.aten._softmax.out(logits_rV, 1, False, out=logits_rV)
            # log Σ exp(logits) = peak − log p(peak), and p(peak) ≥ 1 / V never underflows as p(target) may
            total += (peak_r1 - logits_rV.gather(1, peak_at_r1).log_() - at_target_r1).sum(dtype=torch.float64)
            if grad_x_RD is None:
                continue
            logits_rV.scatter_add_(1, targets_r1, logits_rV.new_full((len(x_rD), 1), -1.0))
            torch.mm(logits_rV, weight_VD, out=grad_x_RD[start : start + size])
            if grad_weight_VD is None:
                grad_weight_VD = torch.mm(logits_rV.T, x_rD)
            else:
                grad_weight_VD.addmm_(logits_rV.T, x_rD)
        ctx.rows = rows
        ctx.grads = (grad_x_RD, grad_weight_VD)
        return (total / rows).to(x_RD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x_RD, grad_weight_VD = ctx.grads
        ctx.grads = None
        scale = grad / ctx.rows
        return grad_x_RD.mul_(scale), grad_weight_VD.mul_(scale), None


class _ChunkedCrossEntropy(Function):
    """For devices whose compiler fuses what is between the products: those in autocast's format, the rest in fp32."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, chunk_rows: int) -> Tensor:
        device, rows = x_RD.device.type, x_RD.shape[0]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_RD.dtype
        weight = weight_VD.to(dtype)
        places_V = torch.arange(weight.shape[0], device=x_RD.device)
        total = torch.zeros((), dtype=torch.float32, device=x_RD.device)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        grads_x = []
        # autocast is off from here on: what is fp32 must stay so
        with torch.autocast(device, enabled=False):
            for x_rD, targets_r in _chunks(x_RD.to(dtype), targets_R, chunk_rows):
                logits_rV = (x_rD @ weight.t()).float()
                total_r = torch.logsumexp(logits_rV, dim=-1)
                total = total + (total_r - logits_rV.gather(1, targets_r[:, None])[:, 0]).sum()
                at_target_rV = places_V[None] == targets_r[:, None]
                grad_rV = (torch.exp(logits_rV - total_r[:, None]) - at_target_rV.float()).to(dtype)
                grads_x.append(grad_rV @ weight)
                grad_weight_VD = grad_weight_VD + (grad_rV.t() @ x_rD).float()
        ctx.rows = rows
        ctx.save_for_backward(torch.cat(grads_x), grad_weight_VD)
        ctx.dtypes = x_RD.dtype, weight_VD.dtype
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x_RD, grad_weight_VD = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        scale = grad / ctx.rows
        return (grad_x_RD * scale).to(of_x), (grad_weight_VD * scale).to(of_weight), None, None


def _chunks(x_RD: Tensor, targets_R: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(x_RD, rows), torch.split(targets_R, rows), strict=True)
