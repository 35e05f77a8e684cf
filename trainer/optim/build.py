"""An optimizer from its config."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from podium.trainer.optim.adamw import AdamW
from podium.trainer.optim.groups import decay_groups
from podium.trainer.optimizer_config import OptimizerConfig


class Optimizer(Protocol):
    """What the training loop needs of an optimizer."""

    param_groups: list[dict[str, Any]]

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next step."""

    def step(self, *, divide_by: Tensor | None = None) -> None:
        """One update, each gradient divided by `divide_by` first."""

    def zero_grad(self) -> None:
        """Drop all gradients."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The named optimizer over all parameters of `model`, on the model's device."""
    return AdamW(
        decay_groups(model, config.weight_decay),
        lr=config.learning_rate,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
    )
