"""nGPT: weights, hidden states, queries and keys on the unit sphere (Loshchilov et al., arXiv 2410.01131, 2024).

Every block moves the hidden state a share of the way towards its own, normalised output:
h ← norm(h + α · (norm(block(h)) − h)), α per feature ("eigen learning rates"). What norms and weight decay do
elsewhere, the normalisation of weights along the d_model side does here, after the optimizer and at the start. Scaling
parameters give back what unit vectors can't express; each is stored at a scale of its own, which sets how fast it
learns, as in NVIDIA/ngpt, model.py.

B sequences  T tokens  D d_model  N heads  H head size  F d_ff  V vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from podium.trainer.builtin.model_config import NgptConfig
from podium.trainer.builtin.models import fused
from podium.trainer.builtin.models.transformer import RotaryTable


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x with norm 1 along `dim`, in fp32 whatever x is in.

    In bf16 norms are off by up to 0.4 %, and that of every layer adds to it, since nothing downstream rescales.
    """
    return F.normalize(x.float(), dim=dim)


class Scale(nn.Module):
    """Learned factors, one a feature, that start at `initial` and are stored as `stored`.

    An optimizer like Adam moves what is stored by its learning rate: relative to the factor, by rate / stored.
    """

    def __init__(self, size: int, initial: float, stored: float) -> None:
        super().__init__()
        self.stored = nn.Parameter(torch.full((size,), stored))
        self.factor = initial / stored

    def forward(self) -> Tensor:
        """The factors, fp32."""
        return self.stored * self.factor


class Ngpt(nn.Module):
    """A language model of `config`, its weights normalised."""

    def __init__(self, config: NgptConfig) -> None:
        super().__init__()
        d_model, n_layers, n_heads, _ = config.dimensions
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, d_model)
        self.rotary = RotaryTable(d_model // n_heads, config.rope_base)
        self.blocks = nn.ModuleList(NgptBlock(config) for _ in range(n_layers))
        self.output = nn.Linear(d_model, config.vocab_size, bias=False)
        self.s_z = Scale(config.vocab_size, 1.0, 1 / math.sqrt(d_model))
        self._initialise()
        self.project()

    def forward(self, idx_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """(logits_BTV, None), or with targets (None, mean loss in nats)."""
        cos_T1h, sin_T1h = self.rotary(idx_BT.shape[1], idx_BT.device)
        h_BTD = self.embedding(idx_BT)
        for block in self.blocks:
            h_BTD = block(h_BTD, cos_T1h, sin_T1h)
        # s_z · (W h) as (s_z W) h: one product over the vocabulary instead of one over all tokens' logits
        weight_VD = self.output.weight * self.s_z()[:, None]
        if targets_BT is None:
            return F.linear(h_BTD, weight_VD), None
        return None, fused.linear_cross_entropy(h_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())

    def after_step(self, step: int) -> None:
        """Normalise the weights if optimizer step `step` (from 1) is one after which that is due."""
        if step % self.config.projection_every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Give every weight vector along d_model norm 1."""
        for weight, dim in self.normalised():
            weight.copy_(unit(weight, dim))

    def normalised(self) -> list[tuple[Tensor, int]]:
        """The matrices on the sphere, each with the dimension along which its vectors have norm 1."""
        found: list[tuple[Tensor, int]] = [(self.embedding.weight, -1), (self.output.weight, -1)]
        for block in self.blocks:
            assert isinstance(block, NgptBlock)
            found += [(block.qkv_3DD, -1), (block.gate_up_2FD, -1)]
            found += [(block.attention_projection.weight, 0), (block.feed_forward_projection.weight, 0)]
        return found

    def _initialise(self) -> None:
        """N(0, 1/√D). Only directions remain of it, so no projection may start at zero."""
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=1 / math.sqrt(self.config.d_model))


class NgptBlock(nn.Module):
    """Attention, then feed-forward, each moving the hidden state on the sphere. Takes any h, gives one of norm 1."""

    def __init__(self, config: NgptConfig) -> None:
        super().__init__()
        d_model, _, self.n_heads, d_ff = config.dimensions
        # stacks, since the optimizer makes each of their matrices orthogonal by itself; one product serves them all
        self.qkv_3DD = nn.Parameter(torch.empty(3, d_model, d_model))
        self.attention_projection = nn.Linear(d_model, d_model, bias=False)
        self.gate_up_2FD = nn.Parameter(torch.empty(2, d_ff, d_model))
        self.feed_forward_projection = nn.Linear(d_ff, d_model, bias=False)
        small = 1 / math.sqrt(d_model)
        self.alpha_attention = Scale(d_model, config.alpha, small)
        self.alpha_feed_forward = Scale(d_model, config.alpha, small)
        self.s_qk = Scale(d_model, 1.0, small)
        self.s_uv = Scale(2 * d_ff, 1.0, 1.0)
        self.sqrt_d_model = math.sqrt(d_model)

    def forward(self, h_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        h_BTD = _towards(h_BTD, self._attend(h_BTD, cos_T1h, sin_T1h), self.alpha_attention())
        return _towards(h_BTD, self._feed_forward(h_BTD), self.alpha_feed_forward())

    def _attend(self, h_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        B, T, D = h_BTD.shape
        qkv_BT3NH = F.linear(h_BTD, self.qkv_3DD.flatten(0, 1)).view(B, T, 3 * self.n_heads, D // self.n_heads)
        qk_BT2NH, v_BTNH = torch.split(qkv_BT3NH, [2 * self.n_heads, self.n_heads], dim=2)
        s_qk_2NH = self.s_qk().view(self.n_heads, -1).repeat(2, 1)
        qk_BT2NH = (s_qk_2NH * unit(fused.rotate(qk_BT2NH, cos_T1h, sin_T1h))).to(v_BTNH.dtype)
        q_BTNH, k_BTNH = qk_BT2NH.chunk(2, dim=2)
        y_BNTH = F.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2),
            k_BTNH.transpose(1, 2),
            v_BTNH.transpose(1, 2),
            is_causal=True,
            scale=math.sqrt(D // self.n_heads),  # of unit vectors: their products are small, not large
        )
        return self.attention_projection(y_BNTH.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]

    def _feed_forward(self, h_BTD: Tensor) -> Tensor:
        gate_up_BTf = F.linear(h_BTD, self.gate_up_2FD.flatten(0, 1))
        # √D on both halves, as in the code; the paper has it on the gate alone. The other half's factor is the whole
        # output's, which the normalisation takes away.
        scale_f = (self.s_uv() * self.sqrt_d_model).to(gate_up_BTf.dtype)
        return self.feed_forward_projection(fused.swiglu(gate_up_BTf * scale_f))  # type: ignore[no-any-return]


def _towards(h_BTD: Tensor, output_BTD: Tensor, alpha_D: Tensor) -> Tensor:
    """The point on the sphere a share |α| of the way from h to a block's output."""
    h_BTD = unit(h_BTD)
    return unit(h_BTD + alpha_D.abs() * (unit(output_BTD) - h_BTD))
