"""The pre-norm decoder-only transformer: RMSNorm, rotary positions, SwiGLU, causal attention, tied or untied output.

B sequences  T tokens  D d_model  V vocabulary
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from podium.trainer.model_config import TransformerConfig
from podium.trainer.models import fused
from podium.trainer.models.blocks import Block, RMSNorm, RotaryTable

INITIAL_STD = 0.02


class Transformer(nn.Module):
    """A language model of `config`, whose dimensions must be resolved (else ConfigError)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d_model, n_layers, n_heads, d_ff = config.dimensions
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, d_model)
        self.rotary = RotaryTable(d_model // n_heads, config.rope_base)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff, config.norm_eps) for _ in range(n_layers))
        self.norm = RMSNorm(d_model, config.norm_eps)
        # tied: the embedding itself, so that a checkpoint holds the matrix once
        self.output = None if config.tied_embeddings else nn.Linear(d_model, config.vocab_size, bias=False)
        self._initialise(n_layers)

    def forward(self, idx_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """(logits_BTV, None), or with targets (None, mean loss in nats): the logits are then never stored whole."""
        cos_T1h, sin_T1h = self.rotary(idx_BT.shape[1], idx_BT.device)
        x_BTD = self.embedding(idx_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_T1h, sin_T1h)
        x_BTD = self.norm(x_BTD)
        weight_VD = self.embedding.weight if self.output is None else self.output.weight
        if targets_BT is None:
            return F.linear(x_BTD, weight_VD), None
        return None, fused.linear_cross_entropy(x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())

    def _initialise(self, n_layers: int) -> None:
        """N(0, 0.02) for matrices; what adds to the residual stream is scaled by 1/√(2·layers) (GPT-2, 2019)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            scale = 1 / math.sqrt(2 * n_layers) if name.endswith("projection.weight") else 1.0
            nn.init.normal_(parameter, std=INITIAL_STD * scale)
