"""Which optimizer: a config for each."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from podium.trainer.section import Section, kind_field, kind_tag


class AdamWConfig(Section):
    """AdamW (Loshchilov & Hutter, 2017). Weight decay applies to matrices, not to gains."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class RestConfig(Section):
    """AdamW for what Muon does not take: embeddings, the output, gains and scaling parameters."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; the matrices' by default, since Muon's updates have the size of AdamW's here."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Of embeddings and output; gains and scaling parameters have none."""


class MuonConfig(Section):
    """Muon (Jordan, 2024) on the matrices of the blocks, AdamW on the rest.

    A matrix of m × n moves by learning_rate × 0.2 · √max(m, n) times its orthogonalised momentum, so that the update's
    root mean square is 0.2 × learning_rate, about AdamW's (Liu et al., "Muon is scalable for LLM training", 2025;
    torch.optim.Muon's `match_rms_adamw`). The speedruns' convention, rate × √max(m, n), has a fifth of this number:
    their 0.00036 is 0.0018 here.
    """

    name: Literal["muon"]
    learning_rate: float = Field(gt=0)
    """Peak learning rate of the matrices."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Of the moving average of gradients: m ← momentum · m + (1 − momentum) · g. The sum form m ← momentum · m + g is
    the same times a constant, which orthogonalisation removes."""
    nesterov: bool = True
    orthogonalization: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    iterations: int = Field(default=5, gt=0, le=32)
    """Steps of the orthogonalisation."""
    orthogonalization_precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    variance_reduction: bool = False
    """Scale every row by its running second moment after orthogonalisation (NorMuon, Li et al., 2025)."""
    variance_beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of every entry of the matrices."""
    cautious_weight_decay: bool = False
    """Decay, by `cautious_decay`, those entries alone that the update makes smaller too (CWD, Chen et al., 2025)."""
    cautious_decay: float = Field(default=0.1, gt=0)
    rest: RestConfig = RestConfig()

    @property
    def rest_learning_rate(self) -> float:
        """Peak learning rate of AdamW's share."""
        return self.learning_rate if self.rest.learning_rate is None else self.rest.learning_rate

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_decay and self.cautious_weight_decay:
            raise ValueError(
                f"weight_decay must be 0 with cautious_weight_decay, got {self.weight_decay:g}: one or the other"
            )
        return self


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, kind_tag("adamw")] | Annotated[MuonConfig, kind_tag("muon")],
    kind_field("name", "adamw", "muon"),
]
"""Any of them."""
