"""Which parameters an optimizer treats alike."""

from __future__ import annotations

from typing import Any

from torch import nn

BLOCKS = "blocks."
"""Every family keeps its layers in `blocks`; what is outside (embedding, output) is no hidden matrix."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, embeddings included, with `weight_decay`; gains and biases without."""
    return _by_shape(list(model.parameters()), weight_decay)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of the blocks: what Muon takes. A parameter of three dimensions is a stack of matrices."""
    return [parameter for name, parameter in model.named_parameters() if _is_hidden(name, parameter)]


def rest_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All but the hidden matrices: embeddings and output with `weight_decay`, gains and the like without."""
    rest = [parameter for name, parameter in model.named_parameters() if not _is_hidden(name, parameter)]
    return _by_shape(rest, weight_decay)


def _by_shape(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith(BLOCKS) and parameter.ndim >= 2
