"""The feed-forwards of a mixture's experts, over tokens that are sorted by expert: no loop over tokens, no padding.

    N tokens  A assignments of a token to an expert (N · top-k)  E experts  D d_model  F d_ff

A loop over experts gathers, runs and scatters the tokens of each in turn. Here they are gathered once, in the order of
their experts, so that each expert's tokens are a slice, and every operation that is not a product with an expert's own
matrix is done for all of them at once. On a CPU the products of all experts write into one buffer, and the gradients
are written by hand: autograd would make several small tensors an expert and add them up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from podium.trainer.builtin.models.fused import wants_plain

ROWS_MULTIPLE = 8
"""What the GPU's grouped product wants an expert's rows to be a multiple of: 16 bytes in bf16."""


@dataclass(frozen=True)
class Dispatch:
    """Which tokens go to which expert. Assignments are numbered choice by choice: all first choices, then all second.

    Sorting them is stable, so that a first choice comes before a second and an earlier token before a later one.
    """

    order: Tensor
    """(A,) Assignment at each place of the sorted order."""
    place: Tensor
    """(A,) Place of each assignment in the sorted order."""
    counts: Tensor
    """(E,) Assignments of each expert."""
    tokens: int

    @classmethod
    def of(cls, experts_Nk: Tensor, num_experts: int) -> Dispatch:
        """From each token's choices, the first first."""
        expert_A = experts_Nk.T.flatten()
        order_A = expert_A.argsort(stable=True)
        place_A = torch.empty_like(order_A)
        place_A[order_A] = torch.arange(len(order_A), device=order_A.device)
        counts_E = F.one_hot(expert_A, num_experts).sum(0)  # bincount would make a GPU wait
        return cls(order_A, place_A, counts_E, len(experts_Nk))

    @property
    def token(self) -> Tensor:
        """(A,) The token at each place of the sorted order."""
        return self.order % self.tokens

    def kept(self, capacity: int) -> Tensor:
        """Of each assignment, in its own numbering, whether it is among its expert's first `capacity`."""
        first_E = self.counts.cumsum(0) - self.counts
        place_A = torch.arange(len(self.order), device=self.order.device)
        first_A = first_E.repeat_interleave(self.counts, output_size=len(self.order))
        return ((place_A - first_A) < capacity)[self.place]


class Experts(nn.ModuleList):
    """E feed-forwards c_proj(gelu(c_fc(x))), each first a copy of one GPT-2 block's.

    Every expert keeps parameters of its own: one tensor for all of them would be so large that the machine's allocator
    gives its gradient back to the system each time, and touching it anew costs more than the products gain.
    """

    def __init__(self, feed_forward: nn.Module, num_experts: int) -> None:
        super().__init__(copy.deepcopy(feed_forward) for _ in range(num_experts))

    def forward(self, x_ND: Tensor, weight_kN: Tensor, dispatch: Dispatch) -> Tensor:
        """Σ over a token's experts of weight · expert(x), shape (N, D). `weight_kN` is by choice."""
        parameters = Parameters.of(self)
        if not wants_plain(x_ND):
            places = dispatch.order, dispatch.place
            ends = dispatch.counts.cumsum(0).tolist()
            return _Experts.apply(x_ND, weight_kN, *places, ends, *parameters.flat)  # type: ignore[no-untyped-call,no-any-return]
        sorted_AD = x_ND[dispatch.token]
        if _can_group(sorted_AD):
            out_AD = _grouped(sorted_AD, parameters, dispatch.counts)
        else:
            out_AD = _sliced(sorted_AD, parameters, dispatch.counts.tolist())
        by_choice_kND = out_AD[dispatch.place].view(len(weight_kN), dispatch.tokens, -1)
        return (by_choice_kND * weight_kN.to(out_AD.dtype).unsqueeze(-1)).sum(0)


@dataclass(frozen=True)
class Parameters:
    """The parameters of all experts, each kind in the order of the experts."""

    fc: Sequence[Tensor]
    """(D, F) each, as GPT-2 has its matrices."""
    fc_bias: Sequence[Tensor]
    projection: Sequence[Tensor]
    """(F, D) each."""
    bias: Sequence[Tensor]

    @classmethod
    def of(cls, experts: Iterable[Any]) -> Parameters:
        """From GPT-2 feed-forwards."""
        parts = [(e.c_fc.weight, e.c_fc.bias, e.c_proj.weight, e.c_proj.bias) for e in experts]
        return cls(*zip(*parts, strict=True))

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """One after the other, kind by kind."""
        return (*self.fc, *self.fc_bias, *self.projection, *self.bias)

    @classmethod
    def of_flat(cls, flat: Sequence[Tensor]) -> Parameters:
        """The reverse of `flat`."""
        n = len(flat) // 4
        return cls(flat[:n], flat[n : 2 * n], flat[2 * n : 3 * n], flat[3 * n :])


def _sliced(x_AD: Tensor, p: Parameters, counts: list[int]) -> Tensor:
    hidden = [torch.addmm(bias, x, fc) for bias, x, fc in zip(p.fc_bias, torch.split(x_AD, counts), p.fc, strict=True)]
    hidden_AF = F.gelu(torch.cat(hidden), approximate="tanh")
    parts = zip(p.bias, torch.split(hidden_AF, counts), p.projection, strict=True)
    return torch.cat([torch.addmm(bias, hidden, projection) for bias, hidden, projection in parts])


def _can_group(x_AD: Tensor) -> bool:
    """Whether PyTorch's grouped product serves: bf16 on Hopper and later; it needs no count on the host."""
    return (
        x_AD.is_cuda
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and torch.cuda.get_device_capability(x_AD.device)[0] >= 9
    )


def _grouped(x_AD: Tensor, p: Parameters, counts_E: Tensor) -> Tensor:
    """The same by grouped products, each expert's rows padded to a multiple of 8; nothing waits for the device."""
    total, n, dtype = len(x_AD), len(counts_E), torch.bfloat16
    rows_E = (counts_E + ROWS_MULTIPLE - 1) // ROWS_MULTIPLE * ROWS_MULTIPLE
    padded = -(-total // ROWS_MULTIPLE) * ROWS_MULTIPLE + n * ROWS_MULTIPLE
    expert_A = torch.arange(n, device=x_AD.device).repeat_interleave(counts_E, output_size=total)
    shift_E = (rows_E.cumsum(0) - rows_E) - (counts_E.cumsum(0) - counts_E)
    row_A = torch.arange(total, device=x_AD.device) + shift_E[expert_A]
    ends_E = rows_E.cumsum(0).to(torch.int32)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part.to(dtype) for part in parts])

    with torch.autocast("cuda", enabled=False):
        x_PD = x_AD.new_zeros(padded, x_AD.shape[1], dtype=dtype).index_copy(0, row_A, x_AD.to(dtype))
        hidden_AF = F.grouped_mm(x_PD, stacked(p.fc), offs=ends_E)[row_A] + stacked(p.fc_bias)[expert_A]
        hidden_AF = F.gelu(hidden_AF, approximate="tanh")
        hidden_PF = hidden_AF.new_zeros(padded, hidden_AF.shape[1]).index_copy(0, row_A, hidden_AF)
        return F.grouped_mm(hidden_PF, stacked(p.projection), offs=ends_E)[row_A] + stacked(p.bias)[expert_A]


class _Experts(Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_kN: Tensor, order_A: Tensor, place_A: Tensor, ends: list[int], *flat: Tensor
    ) -> Tensor:
        k, N = weight_kN.shape
        p = Parameters.of_flat(flat)
        sorted_AD = x_ND.index_select(0, order_A % N if k > 1 else order_A)
        hidden_AF = x_ND.new_empty(len(sorted_AD), p.fc[0].shape[1])
        active_AF, out_AD = torch.empty_like(hidden_AF), torch.empty_like(sorted_AD)
        # an expert at a time: what one product has written is still in the cache when the next one reads it
        for e, a, b in _spans(ends):
            hidden_aF, active_aF = hidden_AF[a:b], active_AF[a:b]
            torch.addmm(p.fc_bias[e], sorted_AD[a:b], p.fc[e], out=hidden_aF)
            torch.ops.aten.gelu.out(hidden_aF, approximate="tanh", out=active_aF)
            torch.addmm(p.bias[e], active_aF, p.projection[e], out=out_AD[a:b])
        by_choice_kND = out_AD.index_select(0, place_A).view(k, N, -1)
        ctx.ends = ends
        ctx.save_for_backward(
            sorted_AD, hidden_AF, active_AF, by_choice_kND, weight_kN, order_A, place_A, *p.fc, *p.projection
        )
        return _combine(by_choice_kND, weight_kN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        sorted_AD, hidden_AF, active_AF, by_choice_kND, weight_kN, order_A, place_A, *matrices = ctx.saved_tensors
        fc, projection = matrices[: len(matrices) // 2], matrices[len(matrices) // 2 :]
        k, N = weight_kN.shape
        grad_weight_kN = torch.linalg.vecdot(by_choice_kND, grad_ND.unsqueeze(0))
        grad_AD = grad_ND.index_select(0, order_A % N if k > 1 else order_A)
        grad_AD *= weight_kN.flatten().index_select(0, order_A).unsqueeze(1)
        grad_sorted_AD = torch.empty_like(sorted_AD)
        grad_projection, grad_bias, grad_fc, grad_fc_bias = [], [], [], []
        for e, a, b in _spans(ctx.ends):
            grad_aD, hidden_aF = grad_AD[a:b], hidden_AF[a:b]
            grad_projection.append(torch.mm(active_AF[a:b].T, grad_aD))
            grad_bias.append(grad_aD.sum(0))
            grad_aF = torch.mm(grad_aD, projection[e].T)
            torch.ops.aten.gelu_backward.grad_input(grad_aF, hidden_aF, approximate="tanh", grad_input=grad_aF)
            torch.mm(grad_aF, fc[e].T, out=grad_sorted_AD[a:b])
            grad_fc.append(torch.mm(sorted_AD[a:b].T, grad_aF))
            grad_fc_bias.append(grad_aF.sum(0))
        grad_x = grad_sorted_AD.index_select(0, place_A)
        grad_x_ND = grad_x if k == 1 else grad_x.view(k, N, -1).sum(0)
        return grad_x_ND, grad_weight_kN, None, None, None, *grad_fc, *grad_fc_bias, *grad_projection, *grad_bias


def _combine(by_choice_kND: Tensor, weight_kN: Tensor) -> Tensor:
    out_ND = by_choice_kND[0] * weight_kN[0].unsqueeze(1)
    for choice, weight in zip(by_choice_kND[1:], weight_kN[1:], strict=True):
        out_ND.addcmul_(choice, weight.unsqueeze(1))
    return out_ND


def _spans(ends: list[int]) -> list[tuple[int, int, int]]:
    """(expert, first place, last place + 1); a product over no rows at all still writes zeros."""
    return [(e, ends[e - 1] if e else 0, end) for e, end in enumerate(ends)]
