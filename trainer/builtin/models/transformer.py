"""The pre-norm decoder-only transformer: RMSNorm, rotary positions, SwiGLU, causal attention, tied or untied output.

B sequences  T tokens  D d_model  V vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from podium.trainer.builtin.model_config import TransformerConfig
from podium.trainer.builtin.models import fused

# What the models share: norm, rotary positions, causal attention, SwiGLU and the block of a pre-norm transformer.
#
# B sequences  T tokens  D d_model  N heads  H head size  F d_ff  V vocabulary

_FIRST_POSITIONS = 1024


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain for each feature (Zhang & Sennrich, 2019)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.gain_D = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Same shape as `x_BTD`."""
        return fused.rms_norm(x_BTD, self.gain_D, self.eps)


class RotaryTable(nn.Module):
    """Cosines and sines of the rotary angles, shared by all layers; it grows with the longest sequence seen.

    Not part of a checkpoint: it is a function of the config.
    """

    def __init__(self, head_size: int, base: float) -> None:
        super().__init__()
        self.head_size = head_size
        self.base = base
        self.cos_T1h: Tensor
        self.sin_T1h: Tensor
        self._fill(_FIRST_POSITIONS, torch.get_default_device())

    def forward(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(cos, sin) of positions 0 … tokens − 1, shape (T, 1, H / 2), fp32."""
        if tokens > self.cos_T1h.shape[0]:
            self._fill(tokens, device)
        return self.cos_T1h[:tokens], self.sin_T1h[:tokens]

    def _fill(self, tokens: int, device: torch.device) -> None:
        # in fp64, so that every device rounds the same angles
        frequency_h = self.base ** -(torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size)
        angle_Th = torch.outer(torch.arange(tokens, dtype=torch.float64), frequency_h)
        self.register_buffer("cos_T1h", angle_Th.cos().float()[:, None].to(device), persistent=False)
        self.register_buffer("sin_T1h", angle_Th.sin().float()[:, None].to(device), persistent=False)


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions, no biases."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)  # one product instead of three
        self.projection = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        qkv_BT3NH = self.qkv(x_BTD).view(B, T, 3 * self.n_heads, D // self.n_heads)
        qk_BT2NH, v_BTNH = qkv_BT3NH.split((2 * self.n_heads, self.n_heads), dim=2)
        q_BTNH, k_BTNH = fused.rotate(qk_BT2NH, cos_T1h, sin_T1h).chunk(2, dim=2)
        y_BNTH = F.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2), k_BTNH.transpose(1, 2), v_BTNH.transpose(1, 2), is_causal=True
        )
        return self.projection(y_BNTH.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """Feed-forward down(silu(gate(x)) · up(x)), no biases (Shazeer, 2020)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)  # one product instead of two
        self.projection = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.projection(fused.swiglu(self.gate_up(x_BTD)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(d_model, norm_eps)
        self.attention = Attention(d_model, n_heads)
        self.feed_forward_norm = RMSNorm(d_model, norm_eps)
        self.feed_forward = SwiGLU(d_model, d_ff)

    def forward(self, x_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_T1h, sin_T1h)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))  # type: ignore[no-any-return]


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
