"""The speedrun's GPT (modded-nanogpt's baseline of October 2024) and its variants, as a config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.result import ParameterCounts
from podium.trainer.section import Section
from podium.trainer.units import Count


class DepthWarm(Section):
    """Layers activated one after another, from the bottom up, with stochastic depth until the last one is there.

    A block whose projections are zero adds nothing, so a newly activated one changes nothing at its activation. Until
    the last layer is there, the i-th of n active layers is skipped in a step with probability `drop` · i / (n − 1),
    i from 0 (linear in depth: Huang et al., 2016); the draw depends on seed and step alone.
    """

    start_layers: int = Field(default=4, gt=0)
    """Layers active from the first step."""
    fraction: float = Field(default=0.3, gt=0, lt=1)
    """Share of the run's steps after which all layers are active; the activations are evenly spaced over it."""
    drop: float = Field(default=0.1, ge=0, lt=1)
    """Probability with which the topmost active layer is skipped in a step while layers are still to come."""


class SpeedrunConfig(Section):
    """Decoder-only transformer with parameter-free RMSNorm, QK-norm before RoPE, ReLU² and zero-init projections.

    Source: KellerJordan/modded-nanogpt, records/track_1_short/2024-10-18_PyTorch25.
    """

    family: Literal["speedrun"] = "speedrun"
    vocab_size: Count = Field(gt=1, le=65536)
    """Rows of the embedding; the record's is 50,304: GPT-2's 50,257 tokens, padded."""
    d_model: int = Field(default=768, gt=0)
    n_layers: int = Field(default=12, gt=0)
    n_heads: int = Field(default=6, gt=0)
    block: Literal["sequential", "palm"] = "sequential"
    """palm: attention and feed-forward side by side on one shared norm, their sum scaled by 1/√2."""
    tied_embeddings: bool = True
    """One matrix for input and output, with the head's initialisation; untied, the head starts at zero."""
    rope_base: float = Field(default=10000.0, gt=0)
    residual: Literal["fp32", "autocast"] = "fp32"
    """Format of what goes from block to block in mixed precision: fp32 as in the record, or that of the matrix
    products, which moves half as many bytes."""
    depth_warm: DepthWarm | None = None
    """Layers come in one after another; null: all from the start."""

    @property
    def d_ff(self) -> int:
        """Width of the feed-forward."""
        return 4 * self.d_model

    @property
    def dimensions(self) -> tuple[int, int, int, int]:
        """(d_model, n_layers, n_heads, d_ff)."""
        return self.d_model, self.n_layers, self.n_heads, self.d_ff

    def parameter_counts(self) -> ParameterCounts:
        """Exact trainable parameters, by part."""
        embedding = self.vocab_size * self.d_model
        attention = 4 * self.d_model**2 * self.n_layers
        feed_forward = 2 * self.d_model * self.d_ff * self.n_layers
        output = 0 if self.tied_embeddings else embedding
        return ParameterCounts(
            total=embedding + attention + feed_forward + output,
            embedding=embedding,
            attention=attention,
            feed_forward=feed_forward,
            norm=0,
            output=output,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(f"d_model / n_heads must be a whole even number, got {self.d_model} / {self.n_heads}")
        if self.depth_warm is not None and self.depth_warm.start_layers > self.n_layers:
            raise ValueError(
                f"depth_warm.start_layers must be at most n_layers = {self.n_layers}, "
                f"got {self.depth_warm.start_layers}"
            )
        return self
