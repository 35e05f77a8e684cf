"""An optimizer from its config."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor, nn

from podium.trainer.builtin.config import AdamWConfig, OptimizerConfig, ScheduleConfig
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.optim.adamw import AdamW
from podium.trainer.builtin.optim.muon import Muon

# Which parameters an optimizer treats alike.

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


# Learning rate by step: linear warm-up, then the named decay. Pure functions, without torch.


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of optimizer step `step` (1 … steps).

    The warm-up takes `round(warmup_fraction × steps)` steps and ends on the peak; the last step has
    `final_fraction × peak` (cosine: Loshchilov & Hutter, 2017). A warm-down ends one step later: with `final_fraction`
    0 the last step still has `peak / warmdown_steps`.
    """
    warmup = round(schedule.warmup_fraction * steps)
    if step <= warmup:
        return peak * step / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "warmdown":
        fraction = schedule.warmdown_fraction
        length = schedule.warmdown_steps if fraction is None else round(fraction * steps)
        assert length is not None
        # modded-nanogpt's records count from 0: the first step of the decay still has the peak
        left = min(1.0, (steps - step + 1) / max(1, length))
        return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * left)
    progress = (step - warmup) / max(1, steps - warmup)
    floor = schedule.final_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
