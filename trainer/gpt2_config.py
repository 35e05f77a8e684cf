"""GPT-2 and its mixtures of experts, as configs: the model (`GPT2Config`) and how routers are trained (`RouterConfig`).

The router's training is apart from the model, since a checkpoint of the same architecture fits whatever it was.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.result import ParameterCounts
from podium.trainer.section import Section
from podium.trainer.units import Count


class MoEConfig(Section):
    """Which blocks have experts, and how many of them a token passes through."""

    layers: list[int] = Field(default=[8, 9, 10, 11], min_length=1)
    """Blocks whose feed-forward becomes a mixture, counted from 0."""
    num_experts: int = Field(default=8, ge=2)
    topk: Literal[1, 2] = 1
    """Experts of one token. 1: weighted by p / stop_gradient(p), which is 1 with Switch's gradient. 2: by the two
    probabilities, made to sum to 1."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """Each expert takes at most this many times its even share of a forward pass's tokens; what is over is dropped
    (the block then adds nothing to it). null: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.layers)) != len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ValueError(f"layers must be different blocks from 0 on, got {self.layers}")
        return self


class RouterConfig(Section):
    """How the routers of a mixture are trained, and how often their routing is recorded."""

    lb_coef: float = Field(default=0.01, ge=0)
    """Weight of the load-balance loss (Fedus et al., 2021), a mean over the mixture's layers."""
    z_coef: float = Field(default=0.001, ge=0)
    """Weight of the z-loss (Zoph et al., 2022), a mean over the mixture's layers."""
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the Gaussian noise on the logits in training, at the first step."""
    noise_fraction: float = Field(default=0.25, gt=0, le=1)
    """The noise falls linearly to 0 over this share of the run's steps."""
    log_every_steps: int = Field(default=100, gt=0)
    """Routing is recorded at every so many steps, over the tokens since the time before."""

    def noise_at(self, step: int, steps: int) -> float:
        """Standard deviation of the noise in optimizer step `step` (1 … steps); a pure function, so resume needs no
        state of its own."""
        return self.noise * max(0.0, 1.0 - (step - 1) / (self.noise_fraction * steps))


class CollapseRule(Section):
    """Stop when a layer sends more than `share` of its tokens to one expert, at `checks` looks in a row."""

    share: float = Field(default=0.6, gt=0, lt=1)
    checks: int = Field(default=3, gt=0)
    every_steps: int = Field(default=100, gt=0)
    """A look is over the tokens of so many steps."""


class GPT2Config(Section):
    """GPT-2 (Radford et al., 2019) by `transformers`' GPT2LMHeadModel; with `moe` upcycled into a mixture of experts.

    The default shape is that of the 124M model.
    """

    family: Literal["gpt2"] = "gpt2"
    source: str | None = None
    """Where a run's first weights come from: `gpt2` (the hub), a folder, or s3://…; null: random, by the seed."""
    vocab_size: Count = Field(default=50257, gt=1, le=65536)
    d_model: int = Field(default=768, gt=0)
    n_layers: int = Field(default=12, gt=0)
    n_heads: int = Field(default=12, gt=0)
    n_positions: int = Field(default=1024, gt=0)
    """Learned positions: the longest sequence."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On embeddings, attention and residuals, as GPT-2 was trained."""
    moe: MoEConfig | None = None
    """null: the dense model."""

    @property
    def tied_embeddings(self) -> bool:
        """GPT-2's output is its embedding."""
        return True

    @property
    def d_ff(self) -> int:
        """Width of the feed-forward, and of each expert."""
        return 4 * self.d_model

    @property
    def dimensions(self) -> tuple[int, int, int, int]:
        """(d_model, n_layers, n_heads, d_ff)."""
        return self.d_model, self.n_layers, self.n_heads, self.d_ff

    def parameter_counts(self) -> ParameterCounts:
        """Exact trainable parameters, by part; `active` are those that one token of a mixture passes through."""
        d_model, d_ff, layers = self.d_model, self.d_ff, self.n_layers
        embedding = (self.vocab_size + self.n_positions) * d_model
        attention = layers * (4 * d_model**2 + 4 * d_model)
        expert = 2 * d_model * d_ff + d_ff + d_model
        norm = (2 * layers + 1) * 2 * d_model
        router = more = further = 0
        if self.moe is not None:
            router = len(self.moe.layers) * self.moe.num_experts * d_model
            more = len(self.moe.layers) * (self.moe.num_experts - 1) * expert
            further = len(self.moe.layers) * (self.moe.topk - 1) * expert
        dense = embedding + attention + layers * expert + norm
        return ParameterCounts(
            total=dense + more + router,
            embedding=embedding,
            attention=attention,
            feed_forward=layers * expert + more,
            norm=norm,
            output=0,
            router=router,
            active=None if self.moe is None else dense + further + router,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must divide by n_heads, got {self.d_model} / {self.n_heads}")
        if self.moe is not None and max(self.moe.layers) >= self.n_layers:
            raise ValueError(f"moe.layers must be blocks from 0 to {self.n_layers - 1}, got {sorted(self.moe.layers)}")
        if self.moe is not None and self.moe.topk > self.moe.num_experts:
            raise ValueError(f"moe.topk must be at most num_experts, got {self.moe.topk} of {self.moe.num_experts}")
        return self
