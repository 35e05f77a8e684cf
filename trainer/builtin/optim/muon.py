"""Muon (K. Jordan et al., 2024): momentum, orthogonalised, for the matrices of the blocks; AdamW for all else.

    K matrices of one shape  M rows  N columns

Matrices of one shape are orthogonalised together, and each of several ranks does its share of them: all ranks have the
same gradients and so the same momentum, and what they gather is the same on each. Variance reduction is NorMuon's
(Z. Li et al., arXiv 2510.05491, 2025), cautious weight decay L. Chen et al.'s (arXiv 2510.12402, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from podium.trainer.builtin.config import MuonConfig
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.optim.adamw import AdamW

# The nearest semi-orthogonal matrix, roughly: U·Vᵀ of a matrix U·S·Vᵀ, by a few matrix products.
#
#     K matrices of one shape  M rows  N columns
#
# Each step is X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, which maps every singular value by a·s + b·s³ + c·s⁵. After five
# steps they are near 1, not at it; Muon needs no more.

Method = Literal["newton_schulz", "polar_express"]
Coefficients = tuple[float, float, float]

NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)
"""The quintic of steepest slope at 0 (K. Jordan et al., "Muon", 2024; KellerJordan/Muon, muon.py). In five steps it
maps [0.01, 1] into [0.682, 1.135]."""
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)
"""The best quintic at every step for singular values in [0.001, 1], and Newton and Schulz's own from the seventh on
(N. Amsel, D. Persson, C. Musco, R. Gower, "The Polar Express", arXiv 2505.16932, 2025). In five steps, with the safety
below, they map [0.003, 1] into [0.86, 1.14]."""
POLAR_SAFETY = 1.01
"""The same paper: every step but the last of the list as if the singular values were 1 % larger, so that rounding in
bf16 can't carry one out of the interval in which the polynomials contract."""
EPS = 1e-7


def coefficients(method: Method, steps: int) -> tuple[Coefficients, ...]:
    """(a, b, c) of each step. Polar Express's list goes on with its last entry."""
    if method == "newton_schulz":
        return (NEWTON_SCHULZ,) * steps
    safe = [(a / POLAR_SAFETY, b / POLAR_SAFETY**3, c / POLAR_SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]]
    return tuple([*safe, *[POLAR_EXPRESS[-1]] * steps][:steps])


def orthogonalize(x_KMN: Tensor, method: Method, steps: int) -> Tensor:
    """Every matrix with its singular values near 1, in the number format of `x_KMN`; a zero matrix stays zero."""
    tall = x_KMN.shape[-2] > x_KMN.shape[-1]
    if tall:  # the product of the smaller side is the cheaper one
        x_KMN = x_KMN.mT
    # by Frobenius' norm, which no singular value exceeds
    norm_K11 = torch.linalg.vector_norm(x_KMN, dim=(-2, -1), keepdim=True)
    # each method's own way of not dividing by zero
    x_KMN = x_KMN / (norm_K11.clamp(min=EPS) if method == "newton_schulz" else norm_K11 * POLAR_SAFETY + EPS)
    for a, b, c in coefficients(method, steps):
        gram_KMM = torch.bmm(x_KMN, x_KMN.mT)
        update_KMM = torch.baddbmm(gram_KMM, gram_KMM, gram_KMM, beta=b, alpha=c)
        x_KMN = torch.baddbmm(x_KMN, update_KMM, x_KMN, beta=a)
    return x_KMN.mT if tall else x_KMN


@cache
def compiled_orthogonalize() -> Callable[[Tensor, Method, int], Tensor]:
    """The same, compiled: the scalings and transposes are fused into what stands beside them."""
    return torch.compile(orthogonalize, dynamic=False, fullgraph=True)


UPDATE_RMS = 0.2
"""Root mean square of an update as a share of the learning rate: AdamW's, as measured by Liu et al. (2025)."""
_EPS = 1e-8


@dataclass
class _Share:
    """Matrices of one shape on their way: this rank's are orthogonalised, the others' arrive."""

    parameters: list[Tensor]
    gathered: Tensor
    """With as many zero matrices at the end as the number of ranks needs."""
    arrival: Any
    """What to wait for; None on one rank."""


class Muon:
    """Both optimizers as one. `matrices` are of two dimensions, or of three: a stack of matrices, each by itself.

    Parameters without a gradient are left alone in that step, momentum and all.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: AdamW,
        config: MuonConfig,
        *,
        ranks: Ranks = Ranks(),  # noqa: B008  frozen
        compiled: bool = False,
    ) -> None:
        """`rest` has the peak learning rate of its own in its groups; every rank must call `step` together."""
        self._config, self._rest, self._ranks = config, rest, ranks
        self._matrices = list(matrices)
        self._orthogonalize = compiled_orthogonalize() if compiled else orthogonalize
        # Compiled code is for one shape: layers that are not in use yet are zero matrices to it.
        groups = _by_shape(self._matrices) if compiled else []
        self._padded = {tuple(group[0].shape[-2:]): sum(len(_stack(each)) for each in group) for group in groups}
        self._group: dict[str, Any] = {"params": self._matrices, "lr": config.learning_rate}
        self.param_groups = [self._group, *rest.param_groups]
        self._peaks = [group["lr"] for group in self.param_groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for parameter in self._matrices:
            if parameter.ndim not in (2, 3):
                raise ValueError(f"a matrix has 2 dimensions and a stack of them 3, got {tuple(parameter.shape)}")
            self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
            if config.variance_reduction:
                self.state[parameter]["second_moment"] = torch.zeros_like(parameter[..., :1])

    def set_learning_rate(self, rate: float) -> None:
        """The matrices' rate of the next step; all others keep their proportion to it."""
        for group, peak in zip(self.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rate / self._config.learning_rate

    @torch.no_grad()
    def step(self, *, divide_by: Tensor | None = None) -> None:
        """One update of every parameter that has a gradient, each gradient divided by the scalar `divide_by` first."""
        shares = self._start(divide_by)
        self._rest.step(divide_by=divide_by)  # while matrices arrive
        for share in shares:
            self._update(share)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Compile for every shape; changes nothing. For the time before the clock starts."""
        for parameters in _by_shape(self._matrices):
            matrices_KMN = torch.cat([_stack(parameter) for parameter in parameters])
            self._orthogonalized(self._own(torch.zeros_like(matrices_KMN, dtype=self._dtype(matrices_KMN))))

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._matrices:
            parameter.grad = None
        self._rest.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """`{"matrices": {number: …}, "rest": AdamW's}`; numbers are those of the matrices, in the model's order."""
        return {
            "matrices": {number: self.state[parameter] for number, parameter in enumerate(self._matrices)},
            "rest": self._rest.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy momentum and moments in; settings stay as they were given to this optimizer."""
        for number, parameter in enumerate(self._matrices):
            for name, value in self.state[parameter].items():
                value.copy_(state_dict["matrices"][number][name])
        self._rest.load_state_dict(state_dict["rest"])

    def _start(self, divide_by: Tensor | None) -> list[_Share]:
        """Momentum of all matrices, then this rank's share of orthogonalising; the gathering goes on by itself."""
        present = [parameter for parameter in self._matrices if parameter.grad is not None]
        if not present:
            return []
        gradients = [parameter.grad for parameter in present if parameter.grad is not None]
        if divide_by is not None:
            gradients = list(torch._foreach_div(gradients, divide_by))
        momenta = [self.state[parameter]["momentum"] for parameter in present]
        torch._foreach_lerp_(momenta, gradients, 1 - self._config.momentum)
        if self._config.nesterov:
            momenta = list(torch._foreach_lerp(gradients, momenta, self._config.momentum))
        by_parameter = dict(zip(present, momenta, strict=True))
        # the largest first: its gathering takes longest
        shapes = sorted(_by_shape(present), key=lambda group: -sum(each.numel() for each in group))
        return [self._share(group, [by_parameter[parameter] for parameter in group]) for group in shapes]

    def _share(self, parameters: list[nn.Parameter], directions: list[Tensor]) -> _Share:
        matrices_KMN = torch.cat([_stack(direction) for direction in directions])
        matrices_KMN = _with_zeros(matrices_KMN, self._padded.get(tuple(matrices_KMN.shape[-2:]), 0))
        own_kMN = self._orthogonalized(self._own(matrices_KMN.to(self._dtype(matrices_KMN))))
        if self._ranks.world_size == 1:
            return _Share(list(parameters), own_kMN, None)
        all_KMN = own_kMN.new_empty(len(own_kMN) * self._ranks.world_size, *own_kMN.shape[1:])
        arrival = torch.distributed.all_gather_into_tensor(all_KMN, own_kMN.contiguous(), async_op=True)
        return _Share(list(parameters), all_KMN, arrival)

    def _own(self, matrices_KMN: Tensor) -> Tensor:
        """This rank's matrices; those of the last ranks may be zeros that make every share as large."""
        world = self._ranks.world_size
        if world == 1:
            return matrices_KMN
        each = -(-len(matrices_KMN) // world)
        return _with_zeros(matrices_KMN[self._ranks.rank * each : (self._ranks.rank + 1) * each], each)

    def _orthogonalized(self, matrices_kMN: Tensor) -> Tensor:
        return self._orthogonalize(matrices_kMN, self._config.orthogonalization, self._config.iterations)

    def _dtype(self, matrices: Tensor) -> torch.dtype:
        asked = self._config.orthogonalization_precision
        if asked == "auto":
            has_bf16 = matrices.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            asked = "bf16" if has_bf16 else "fp32"
        return torch.bfloat16 if asked == "bf16" else torch.float32

    def _update(self, share: _Share) -> None:
        if share.arrival is not None:
            share.arrival.wait()
        counts = [len(_stack(parameter)) for parameter in share.parameters]
        # in the weights' format at once: lists of one format are updated by one kernel
        updates_KMN = share.gathered[: sum(counts)].float()
        rows, columns = updates_KMN.shape[-2:]
        rate = self._group["lr"]
        scale = UPDATE_RMS * math.sqrt(max(rows, columns))
        if self._config.variance_reduction:
            updates_KMN, scale = self._equalize_rows(share.parameters, updates_KMN), 1.0
        updates = [
            update.view_as(parameter)
            for update, parameter in zip(torch.split(updates_KMN, counts), share.parameters, strict=True)
        ]
        decay = rate * self._config.weight_decay
        if decay:
            torch._foreach_mul_(share.parameters, 1 - decay)
        if self._config.cautious_weight_decay:
            self._decay_cautiously(share.parameters, updates, rate * self._config.cautious_decay)
        torch._foreach_add_(share.parameters, updates, alpha=-rate * scale)

    def _equalize_rows(self, parameters: list[Tensor], updates_KMN: Tensor) -> Tensor:
        """NorMuon: rows by the root of their running second moment, the whole brought back to the update's RMS."""
        moments = [self.state[parameter]["second_moment"] for parameter in parameters]
        moment_KM1 = torch.cat([_stack(moment) for moment in moments])
        moment_KM1.lerp_(updates_KMN.square().mean(dim=-1, keepdim=True), 1 - self._config.variance_beta2)
        counts = [len(_stack(parameter)) for parameter in parameters]
        torch._foreach_copy_(
            moments, [new.view_as(old) for new, old in zip(torch.split(moment_KM1, counts), moments, strict=True)]
        )
        updates_KMN = updates_KMN / (moment_KM1.sqrt() + _EPS)
        norm_K11: Tensor = torch.linalg.vector_norm(updates_KMN, dim=(-2, -1), keepdim=True)
        size = updates_KMN.shape[-2] * updates_KMN.shape[-1]
        return updates_KMN * (UPDATE_RMS * math.sqrt(size) / (norm_K11 + _EPS))

    def _decay_cautiously(self, parameters: list[Tensor], updates: list[Tensor], decay: float) -> None:
        """Only where the step itself makes the entry smaller; the mask looks at the weights before either."""
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - decay * (update * parameter >= 0))


def _by_shape(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those whose matrices have the same rows and columns, in order."""
    groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(tuple(parameter.shape[-2:]), []).append(parameter)
    return list(groups.values())


def _with_zeros(matrices_KMN: Tensor, count: int) -> Tensor:
    """With zero matrices at the end, so that there are `count` at least."""
    missing = count - len(matrices_KMN)
    if missing <= 0:
        return matrices_KMN
    return torch.cat((matrices_KMN, matrices_KMN.new_zeros(missing, *matrices_KMN.shape[1:])))


def _stack(matrix: Tensor) -> Tensor:
    """A matrix as a stack of one; a stack as it is."""
    return matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
