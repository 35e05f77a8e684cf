"""A model from its config."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from podium.trainer.builtin.model_config import ModelConfig


def start_weights(model: nn.Module, config: ModelConfig) -> None:
    """Put the pretrained weights that the config names, if any, into a model of it.

    Raises ConfigError where they can't be had or are of another shape.
    """
    if config.first_weights is not None:
        loads: Any = model
        loads.load_source(config.first_weights)


def build_model(config: ModelConfig) -> nn.Module:
    """A freshly initialised model on the default device; its dimensions must be resolved (else ConfigError).

    `forward(idx_BT, targets_BT=None)` gives `(logits_BTV, None)` or, with targets, `(None, loss)` in nats a token.
    """
    # only the family that is asked for: transformers, for GPT-2, takes seconds to import
    module, name = config.implementation.split(".")
    model: nn.Module = getattr(import_module(f"podium.trainer.builtin.models.{module}"), name)(config)
    return model
