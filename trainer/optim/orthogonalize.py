"""The nearest semi-orthogonal matrix, roughly: U·Vᵀ of a matrix U·S·Vᵀ, by a few matrix products.

    K matrices of one shape  M rows  N columns

Each step is X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, which maps every singular value by a·s + b·s³ + c·s⁵. After five
steps they are near 1, not at it; Muon needs no more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

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
