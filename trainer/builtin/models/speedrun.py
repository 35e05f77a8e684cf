"""The speedrun's GPT: parameter-free RMSNorm, QK-norm then rotary positions, ReLU², zero-init projections, tied head.

Definition: KellerJordan/modded-nanogpt, records/track_1_short/2024-10-18_PyTorch25. Its variants are in the config:
`palm` blocks (Chowdhery et al., 2022, with a scale of 1/√2 that is not PaLM's) and layers that come in one by one.

B sequences  T tokens  D d_model  N heads  H head size  F d_ff  V vocabulary
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from podium.trainer.builtin.model_config import DepthWarm, SpeedrunConfig
from podium.trainer.builtin.models import fused
from podium.trainer.builtin.models.transformer import RotaryTable

NORM_EPS = torch.finfo(torch.float32).eps
"""Given, since what `F.rms_norm` takes by default has changed between versions of PyTorch."""
PALM_SCALE = 1 / math.sqrt(2)


class Speedrun(nn.Module):
    """A language model of `config`. Loss at initialisation: 16.0 tied (the head's own init), ln V untied."""

    def __init__(self, config: SpeedrunConfig) -> None:
        super().__init__()
        d_model, n_layers, n_heads, d_ff = config.dimensions
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, d_model)
        self.rotary = RotaryTable(d_model // n_heads, config.rope_base)
        block = PalmBlock if config.block == "palm" else SequentialBlock
        self.blocks = nn.ModuleList(block(d_model, n_heads, d_ff) for _ in range(n_layers))
        # tied: the embedding itself, so that a checkpoint holds the matrix once
        self.output = None if config.tied_embeddings else nn.Linear(d_model, config.vocab_size, bias=False)
        if self.output is None:
            bound = 1 / math.sqrt(d_model)
            nn.init.uniform_(self.embedding.weight, -bound, bound)  # what nn.Linear gives the head
        else:
            nn.init.zeros_(self.output.weight)
        self.layers = list(range(n_layers))
        """The layers that a training pass goes through."""
        self.active = n_layers
        """Layers that are there so far, from the bottom; an evaluation goes through all of them."""
        self.changes_layers = config.depth_warm is not None
        self.head_chunk_tokens: int | None = None
        """On a GPU: tokens whose logits exist at once in training; None: all."""

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Decide the layers of optimizer step `step` (1 … steps): the same on every rank and after every resume."""
        if self.config.depth_warm is not None:
            self.active = active_layers(self.config.depth_warm, self.config.n_layers, step, steps)
            self.layers = kept_layers(self.config.depth_warm, self.config.n_layers, self.active, step, seed)

    def forward(self, idx_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """(logits_BTV, None), or with targets (None, mean loss in nats); the loss is of fp32 logits."""
        cos_T1h, sin_T1h = self.rotary(idx_BT.shape[1], idx_BT.device)
        x_BTD = self.embedding(idx_BT)
        device = x_BTD.device.type
        if self.config.residual == "autocast" and torch.is_autocast_enabled(device):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device))
        for index in self.layers if self.training else range(self.active):
            x_BTD = self.blocks[index](x_BTD, cos_T1h, sin_T1h)
        return self._head(x_BTD, targets_BT)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the whole; where layers come and go, each block by itself: one graph serves them all."""
        if self.config.depth_warm is None:
            super().compile(*args, **kwargs)
            return
        for block in self.blocks:
            block.compile(*args, **kwargs)
        self._head = torch.compile(self._head, *args, **kwargs)  # type: ignore[method-assign]

    def _head(self, x_BTD: Tensor, targets_BT: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        x_BTD = norm(x_BTD)
        weight_VD = self.embedding.weight if self.output is None else self.output.weight
        if targets_BT is None:
            return F.linear(x_BTD, weight_VD), None
        chunk = self.head_chunk_tokens if torch.is_grad_enabled() else None
        return None, fused.linear_cross_entropy(x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), chunk)


class SequentialBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.attention = QKNormAttention(d_model, n_heads)
        self.feed_forward = SquaredReLU(d_model, d_ff)

    def forward(self, x_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attention(norm(x_BTD), cos_T1h, sin_T1h)
        return x_BTD + self.feed_forward(norm(x_BTD))  # type: ignore[no-any-return]


class PalmBlock(SequentialBlock):
    """x + (attention(n) + feed_forward(n)) / √2 with one n = norm(x)."""

    def forward(self, x_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        n_BTD = norm(x_BTD)
        return x_BTD + PALM_SCALE * (self.attention(n_BTD, cos_T1h, sin_T1h) + self.feed_forward(n_BTD))  # type: ignore[no-any-return]


class QKNormAttention(nn.Module):
    """Causal attention whose queries and keys are normed by head and then rotated. No biases.

    q, k and v are matrices of their own, since Muon makes each orthogonal by itself; one product serves all three.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.projection = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, x_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        weight = torch.cat((self.q.weight, self.k.weight, self.v.weight))
        qkv_BT3NH = F.linear(x_BTD, weight).view(B, T, 3 * self.n_heads, D // self.n_heads)
        qk_BT2NH, v_BTNH = torch.split(qkv_BT3NH, [2 * self.n_heads, self.n_heads], dim=2)
        # the record rotates the other way round than blocks.Attention, by a table in autocast's format
        cos_T1h, sin_T1h = cos_T1h.to(v_BTNH.dtype), -sin_T1h.to(v_BTNH.dtype)
        q_BTNH, k_BTNH = fused.rotate(norm(qk_BT2NH), cos_T1h, sin_T1h).to(v_BTNH.dtype).chunk(2, dim=2)
        y_BNTH = F.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2), k_BTNH.transpose(1, 2), v_BTNH.transpose(1, 2), is_causal=True
        )
        return self.projection(y_BNTH.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


class SquaredReLU(nn.Module):
    """Feed-forward projection(relu(expand(x))²), no biases (So et al., 2021)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.expand = nn.Linear(d_model, d_ff, bias=False)
        self.projection = nn.Linear(d_ff, d_model, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.projection(fused.relu_squared(self.expand(x_BTD)))  # type: ignore[no-any-return]


def norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, without a gain."""
    return fused.rms_norm(x, None, NORM_EPS)


def active_layers(warm: DepthWarm, n_layers: int, step: int, steps: int) -> int:
    """How many layers are there at optimizer step `step` (1 … steps), from the bottom up."""
    to_come = n_layers - warm.start_layers
    share = min(1.0, (step - 1) / max(1.0, warm.fraction * steps))
    return warm.start_layers + math.floor(share * to_come)


def kept_layers(warm: DepthWarm, n_layers: int, active: int, step: int, seed: int) -> list[int]:
    """The layers that step `step` goes through: all active ones once every layer is there, else some are skipped."""
    if active == n_layers or warm.drop == 0:
        return list(range(active))
    draws = random.Random(f"depth-warm {seed} {step}")  # noqa: S311  no secret
    top = max(1, active - 1)
    return [layer for layer in range(active) if draws.random() >= warm.drop * layer / top]
