"""Which model: a config for each family.

Every family's config has `family`, `vocab_size`, `tied_embeddings`, `dimensions` (d_model, n_layers, n_heads, d_ff)
and `parameter_counts()`; whoever needs no more of a model needs to know no family.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from podium.trainer.errors import ConfigError
from podium.trainer.gpt2_config import GPT2Config
from podium.trainer.ngpt_config import NgptConfig
from podium.trainer.result import ParameterCounts
from podium.trainer.section import Section, kind_field, kind_tag
from podium.trainer.speedrun_config import SpeedrunConfig
from podium.trainer.units import Count


class Allocation(Section):
    """A request for a model of a given size; `podium.trainer.allocation.solve` turns it into dimensions."""

    parameters: Count = Field(gt=0)
    """All trainable parameters, embeddings included."""
    embedding_share: float = Field(gt=0, lt=1)
    """Embedding parameters (input, and output where untied) as a fraction of all parameters."""
    glu_expansion: float = Field(gt=0)
    """d_ff / d_model of the SwiGLU feed-forward."""


class TransformerConfig(Section):
    """Pre-norm decoder-only transformer: RMSNorm, RoPE, SwiGLU, causal attention.

    Dimensions are given, or solved from `allocation`; a resolved config has both.
    """

    family: Literal["transformer"] = "transformer"
    vocab_size: Count = Field(gt=1, le=65536)
    """Rows of the embedding. At most 65,536, since tokens are stored as uint16."""
    allocation: Allocation | None = None
    d_model: int | None = Field(default=None, gt=0)
    n_layers: int | None = Field(default=None, gt=0)
    n_heads: int | None = Field(default=None, gt=0)
    d_ff: int | None = Field(default=None, gt=0)
    tied_embeddings: bool = True
    rope_base: float = Field(default=10000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)

    @property
    def dimensions(self) -> tuple[int, int, int, int]:
        """(d_model, n_layers, n_heads, d_ff). Raises ConfigError where they are not resolved yet."""
        if self.d_model is None or self.n_layers is None or self.n_heads is None or self.d_ff is None:
            raise ConfigError("model: not resolved yet: give d_model, n_layers, n_heads and d_ff, or an allocation")
        return self.d_model, self.n_layers, self.n_heads, self.d_ff

    def parameter_counts(self) -> ParameterCounts:
        """Exact trainable parameters, by part. Raises ConfigError where the dimensions are not resolved yet."""
        d_model, n_layers, _, d_ff = self.dimensions
        return swiglu_counts(d_model, n_layers, d_ff, self.vocab_size, self.tied_embeddings)

    @model_validator(mode="after")
    def _check(self) -> Self:
        dims = {"d_model": self.d_model, "n_layers": self.n_layers, "n_heads": self.n_heads, "d_ff": self.d_ff}
        missing = [name for name, value in dims.items() if value is None]
        if missing and (self.allocation is None or len(missing) < len(dims)):
            raise ValueError(
                f"give all of {', '.join(dims)}, or none of them and an allocation, got no {', '.join(missing)}"
            )
        if self.d_model and self.n_heads and (self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2):
            raise ValueError(f"d_model / n_heads must be a whole even number, got {self.d_model} / {self.n_heads}")
        return self


def swiglu_counts(d_model: int, n_layers: int, d_ff: int, vocab_size: int, tied: bool) -> ParameterCounts:
    """The transformer family's parameters at these dimensions."""
    embedding = vocab_size * d_model
    attention = 4 * d_model**2 * n_layers
    feed_forward = 3 * d_model * d_ff * n_layers
    norm = (2 * n_layers + 1) * d_model
    output = 0 if tied else embedding
    return ParameterCounts(
        total=embedding + attention + feed_forward + norm + output,
        embedding=embedding,
        attention=attention,
        feed_forward=feed_forward,
        norm=norm,
        output=output,
    )


ModelConfig = Annotated[
    Annotated[TransformerConfig, kind_tag("transformer")]
    | Annotated[SpeedrunConfig, kind_tag("speedrun")]
    | Annotated[NgptConfig, kind_tag("ngpt")]
    | Annotated[GPT2Config, kind_tag("gpt2")],
    kind_field("family", "transformer", "speedrun", "ngpt", "gpt2"),
]
"""Of any family."""
