"""Tests against a control with pooled variance: Student's t for one arm, Dunnett's for several.

C. W. Dunnett, "A multiple comparison procedure for comparing several treatments with a control", JASA 50 (1955).
`scipy.stats.dunnett` integrates by randomised quasi-Monte-Carlo, so two calls differ in the fourth digit; a verdict
must be recomputable, so the two-dimensional integral is done by fixed quadrature here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import special, stats

_CHI_NODES = 96
_NORMAL_NODES = 64
"""Enough for 1e-7 with up to ten arms, 5e-5 with two thousand (against 600 × 400 nodes)."""
_NORMAL_LIMIT = 8.5
"""Standard normal mass beyond this is under 2e-17."""


def better_than_control(statistic: float, sizes: Sequence[int], control_size: int, degrees_of_freedom: int) -> float:
    """One-sided p of an arm being better than the control, adjusted for all the arms compared with it.

    `statistic` is (control mean - arm mean) / (pooled SD · sqrt(1/n + 1/n0)), large if the arm is better; `sizes` are
    the seeds of all arms compared. The p is P(max over arms of T >= statistic) if no arm differs from the control
    (normal errors, one variance). With one arm it is Student's t.
    """
    if len(sizes) == 1:
        return float(stats.t.sf(statistic, degrees_of_freedom))
    # Correlated by the shared control: corr(T_i, T_j) = λ_i λ_j with λ_i = sqrt(n_i / (n_i + n_0)), so given the
    # control's normal z and the pooled SD's chi s the arms are independent.
    loads = np.array([math.sqrt(size / (size + control_size)) for size in sizes])
    arms, repeats = np.unique(loads, return_counts=True)
    s, s_weights = _chi_rule(degrees_of_freedom)
    z, z_weights = _normal_rule()
    log_all_below = np.zeros((len(s), len(z)))
    for load, repeat in zip(arms, repeats, strict=True):
        limit = (statistic * s[:, None] + load * z[None, :]) / math.sqrt(1 - load**2)
        log_all_below += repeat * special.log_ndtr(limit)
    # -expm1 keeps the digits of a small p that 1 - product would lose
    p = float(s_weights @ -np.expm1(log_all_below) @ z_weights)
    return min(1.0, max(0.0, p))


def difference_interval(
    difference: float, error: float, degrees_of_freedom: float, alpha: float
) -> tuple[float, float]:
    """Two-sided 1 - 2·alpha interval of a difference of means, for this arm alone (not adjusted for the others)."""
    half = -float(special.stdtrit(degrees_of_freedom, alpha)) * error
    return difference - half, difference + half


@cache
def _chi_rule(degrees_of_freedom: int) -> tuple[Any, Any]:
    """Nodes and weights for the mean over s = sqrt(chi²_df / df), by Gauss-Legendre between its far quantiles."""
    low = math.sqrt(stats.chi2.ppf(1e-14, degrees_of_freedom) / degrees_of_freedom)
    high = math.sqrt(stats.chi2.isf(1e-14, degrees_of_freedom) / degrees_of_freedom)
    nodes, weights = np.polynomial.legendre.leggauss(_CHI_NODES)
    s = low + (nodes + 1) * (high - low) / 2
    density = stats.chi2.pdf(s**2 * degrees_of_freedom, degrees_of_freedom) * 2 * s * degrees_of_freedom
    mass = weights * density
    return s, mass / mass.sum()


@cache
def _normal_rule() -> tuple[Any, Any]:
    nodes, weights = np.polynomial.legendre.leggauss(_NORMAL_NODES)
    z = nodes * _NORMAL_LIMIT
    mass = weights * np.exp(-(z**2) / 2)
    return z, mass / mass.sum()
