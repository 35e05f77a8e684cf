"""A model from its config: the one place that knows every family."""

from __future__ import annotations

from torch import nn

from podium.trainer.builtin.model_config import GPT2Config, ModelConfig, NgptConfig, SpeedrunConfig
from podium.trainer.builtin.models.ngpt import Ngpt
from podium.trainer.builtin.models.speedrun import Speedrun
from podium.trainer.builtin.models.transformer import Transformer


def start_weights(model: nn.Module, config: ModelConfig) -> None:
    """Put the pretrained weights that the config names, if any, into a model of it.

    Raises ConfigError where they can't be had or are of another shape.
    """
    if isinstance(config, GPT2Config) and config.source is not None:
        from podium.trainer.builtin.models.gpt2 import load_source

        load_source(model, config.source)


def build_model(config: ModelConfig) -> nn.Module:
    """A freshly initialised model on the default device; its dimensions must be resolved (else ConfigError).

    `forward(idx_BT, targets_BT=None)` gives `(logits_BTV, None)` or, with targets, `(None, loss)` in nats a token.
    """
    match config:
        case SpeedrunConfig():
            return Speedrun(config)
        case NgptConfig():
            return Ngpt(config)
        case GPT2Config():
            from podium.trainer.builtin.models.gpt2 import GPT2  # transformers takes seconds to import

            return GPT2(config)
        case _:
            return Transformer(config)
