"""nGPT, the transformer whose vectors all have norm 1, as a config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.result import ParameterCounts
from podium.trainer.section import Section
from podium.trainer.units import Count


class NgptConfig(Section):
    """Decoder-only transformer on the unit sphere: normalised weights and hidden states, no norm layers, SwiGLU, RoPE.

    Source: Loshchilov et al., "nGPT", arXiv 2410.01131, 2024; NVIDIA/ngpt, model.py.
    """

    family: Literal["ngpt"]
    vocab_size: Count = Field(gt=1, le=65536)
    """Rows of the embedding and of the output."""
    d_model: int = Field(default=768, gt=0)
    n_layers: int = Field(default=11, gt=0)
    n_heads: int = Field(default=12, gt=0)
    d_ff: int = Field(default=2048, gt=0)
    """Width of the SwiGLU: 8/3 of d_model has as many parameters as a plain feed-forward four times as wide."""
    alpha: float = Field(default=0.05, gt=0)
    """Eigen learning rate at the start: the share of the way that a block moves the hidden state towards its output."""
    projection_every: int = Field(default=1, gt=0)
    """Optimizer steps between two normalisations of the weights, which the start has too; 1 is nGPT as published.
    In between the weights are what the optimizer left."""
    rope_base: float = Field(default=10000.0, gt=0)

    @property
    def tied_embeddings(self) -> bool:
        """Input and output are matrices of their own."""
        return False

    @property
    def dimensions(self) -> tuple[int, int, int, int]:
        """(d_model, n_layers, n_heads, d_ff)."""
        return self.d_model, self.n_layers, self.n_heads, self.d_ff

    def parameter_counts(self) -> ParameterCounts:
        """Exact trainable parameters, by part; the scaling parameters are counted as `norm`, whose place they take."""
        embedding = self.vocab_size * self.d_model
        attention = 4 * self.d_model**2 * self.n_layers
        feed_forward = 3 * self.d_model * self.d_ff * self.n_layers
        # two eigen learning rates and s_qk of d_model, s_u and s_v of d_ff; s_z of the vocabulary
        scaling = (3 * self.d_model + 2 * self.d_ff) * self.n_layers + self.vocab_size
        return ParameterCounts(
            total=2 * embedding + attention + feed_forward + scaling,
            embedding=embedding,
            attention=attention,
            feed_forward=feed_forward,
            norm=scaling,
            output=embedding,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(f"d_model / n_heads must be a whole even number, got {self.d_model} / {self.n_heads}")
        return self
