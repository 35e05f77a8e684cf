"""Which optimizer: a config for each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from podium.trainer.section import Section


class AdamWConfig(Section):
    """AdamW (Loshchilov & Hutter, 2017). Weight decay applies to matrices, not to gains."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


OptimizerConfig = AdamWConfig
"""Any of them."""
