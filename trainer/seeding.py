"""Random state: set from a seed, taken for a checkpoint, put back on resume."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The four random states under a checkpoint's keys, in plain types, so that `weights_only=True` can load them."""
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    name, keys, position, has_gauss, gauss = state
    assert not isinstance(keys, str)
    return {
        "python_random_state": random.getstate(),
        "numpy_random_state": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state_if_available": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` took. A CUDA state is used where its number of devices is the present one."""
    version, internal, gauss_next = state["python_random_state"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy_random_state"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch_rng_state"])
    cuda = state["cuda_rng_state_if_available"]
    if cuda is not None and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
