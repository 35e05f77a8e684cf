"""Which model: a config for each family.

A new family is a subclass of `FamilyConfig` here, named in `ModelConfig` below, and its model in a file of `models/`.
Elsewhere nothing asks which family it is.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.result import ParameterCounts
from podium.trainer.trial.section import Count, Section, kind_field, kind_tag


class FamilyConfig(Section):
    """What is asked of the config of any family. It has the fields `family` and `vocab_size` besides."""

    implementation: ClassVar[str]
    """The model's class, as `module.Class` below `models`; imported when a model is built."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages that the model needs beside PyTorch."""
    vocab_size: int

    @property
    def has_dimensions(self) -> bool:
        """Whether the dimensions are given, rather than to be solved from an allocation."""
        return True

    @property
    def dimensions(self) -> tuple[int, int, int, int]:
        """(d_model, n_layers, n_heads, d_ff). Raises ConfigError where they are not resolved yet."""
        raise NotImplementedError

    def parameter_counts(self) -> ParameterCounts:
        """Exact trainable parameters, by part. Raises ConfigError where the dimensions are not resolved yet."""
        raise NotImplementedError

    @property
    def wanted_allocation(self) -> tuple[Allocation, bool] | None:
        """The parameters that the dimensions are to have, and whether the embeddings are tied."""
        return None

    @property
    def mixture(self) -> MoEConfig | None:
        """The experts of a mixture; None for a dense model."""
        return None

    @property
    def first_weights(self) -> str | None:
        """Where pretrained weights come from (the model then has `load_source`); None: random ones."""
        return None

    @property
    def most_positions(self) -> int | None:
        """The longest sequence that the model can take; None: any."""
        return None

    def check_run(self, *, optimizer: str, sequence_length: int) -> None:
        """Raise ValueError for a run that the family can't serve."""


# GPT-2 and its mixtures of experts, as configs: the model (`GPT2Config`) and how routers are trained (`RouterConfig`).
#
# The router's training is apart from the model, since a checkpoint of the same architecture fits whatever it was.


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


class GPT2Config(FamilyConfig):
    """GPT-2 (Radford et al., 2019) by `transformers`' GPT2LMHeadModel; with `moe` upcycled into a mixture of experts.

    The default shape is that of the 124M model.
    """

    implementation: ClassVar[str] = "gpt2.GPT2"
    libraries: ClassVar[tuple[str, ...]] = ("transformers",)
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
    def mixture(self) -> MoEConfig | None:
        """`moe`."""
        return self.moe

    @property
    def first_weights(self) -> str | None:
        """`source`."""
        return self.source

    @property
    def most_positions(self) -> int | None:
        """Its positions are learned."""
        return self.n_positions

    def check_run(self, *, optimizer: str, sequence_length: int) -> None:
        """Muon knows the matrices of other families' layers alone."""
        if optimizer != "adamw":
            raise ValueError(f"optimizer.name must be 'adamw' for GPT-2's layers, got {optimizer!r}")
        if sequence_length > self.n_positions:
            raise ValueError(
                f"data.sequence_length must be at most model.n_positions = {self.n_positions}, got {sequence_length}"
            )

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


# nGPT, the transformer whose vectors all have norm 1, as a config.


class NgptConfig(FamilyConfig):
    """Decoder-only transformer on the unit sphere: normalised weights and hidden states, no norm layers, SwiGLU, RoPE.

    Source: Loshchilov et al., "nGPT", arXiv 2410.01131, 2024; NVIDIA/ngpt, model.py.
    """

    implementation: ClassVar[str] = "ngpt.Ngpt"
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


# The speedrun's GPT (modded-nanogpt's baseline of October 2024) and its variants, as a config.


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


class SpeedrunConfig(FamilyConfig):
    """Decoder-only transformer with parameter-free RMSNorm, QK-norm before RoPE, ReLU² and zero-init projections.

    Source: KellerJordan/modded-nanogpt, records/track_1_short/2024-10-18_PyTorch25.
    """

    implementation: ClassVar[str] = "speedrun.Speedrun"
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


class Allocation(Section):
    """A request for a model of a given size; `podium.trainer.builtin.allocation.solve` turns it into dimensions."""

    parameters: Count = Field(gt=0)
    """All trainable parameters, embeddings included."""
    embedding_share: float = Field(gt=0, lt=1)
    """Embedding parameters (input, and output where untied) as a fraction of all parameters."""
    glu_expansion: float = Field(gt=0)
    """d_ff / d_model of the SwiGLU feed-forward."""


class TransformerConfig(FamilyConfig):
    """Pre-norm decoder-only transformer: RMSNorm, RoPE, SwiGLU, causal attention.

    Dimensions are given, or solved from `allocation`; a resolved config has both.
    """

    implementation: ClassVar[str] = "transformer.Transformer"
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
    def has_dimensions(self) -> bool:
        """All of them or none are given."""
        return self.d_model is not None

    @property
    def wanted_allocation(self) -> tuple[Allocation, bool] | None:
        """`allocation`."""
        return None if self.allocation is None else (self.allocation, self.tied_embeddings)

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
