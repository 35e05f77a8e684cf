"""An optimizer from its config."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from podium.trainer.distributed import Ranks
from podium.trainer.optim.adamw import AdamW
from podium.trainer.optim.groups import decay_groups, hidden_matrices, rest_groups
from podium.trainer.optim.muon import Muon
from podium.trainer.optimizer_config import AdamWConfig, OptimizerConfig


class Optimizer(Protocol):
    """What the training loop needs of an optimizer."""

    param_groups: list[dict[str, Any]]

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next step."""

    def step(self, *, divide_by: Tensor | None = None) -> None:
        """One update, each gradient divided by `divide_by` first."""

    def warm_up(self) -> None:
        """Compile what a step needs, before the clock starts; changes nothing."""

    def zero_grad(self) -> None:
        """Drop all gradients."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    ranks: Ranks = Ranks(),  # noqa: B008  frozen
    compiled: bool = False,
) -> Optimizer:
    """The named optimizer over all parameters of `model`, on the model's device; `ranks` share its work."""
    if isinstance(config, AdamWConfig):
        return AdamW(
            decay_groups(model, config.weight_decay),
            lr=config.learning_rate,
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
        )
    rest = AdamW(
        rest_groups(model, config.rest.weight_decay),
        lr=config.rest_learning_rate,
        beta1=config.rest.beta1,
        beta2=config.rest.beta2,
        eps=config.rest.eps,
    )
    return Muon(hidden_matrices(model), rest, config, ranks=ranks, compiled=compiled)
