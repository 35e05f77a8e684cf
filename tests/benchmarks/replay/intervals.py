"""Paired bootstrap: draws are resampled, and both policies with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 4_000
LEVEL = 0.95


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile interval over draws.

    The arms are the same in all draws, so the interval is for these arms, not for arms that were never recorded.
    """
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [data[rng.integers(len(data), size=(100, len(data)))].mean(axis=1) for _ in range(RESAMPLES // 100)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(data.mean()), float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean of ours minus theirs, and its interval."""
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed)
