"""The rules that end a run early, as configs; `podium.trainer.stopping` applies them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from podium.trainer.gpt2_config import CollapseRule
from podium.trainer.section import Section
from podium.trainer.target_config import TargetRule
from podium.trainer.units import Count, Seconds


class KillCriterion(Section):
    """One comparison with the reference curve at equal tokens."""

    metric: Literal["perplexity", "loss", "gradient_norm"]
    threshold: float | None = Field(default=None, gt=0)
    """How much worse is too much: in perplexity, in nats (`loss`), or as a ratio to the reference (`gradient_norm`)."""
    sigmas: float | None = Field(default=None, gt=0)
    """For `loss`: the threshold as a multiple of `sigma`, so that it follows the noise."""
    sigma: float | None = Field(default=None, gt=0)
    """Standard deviation of the loss over seeds, in nats."""

    @property
    def limit(self) -> float:
        """The threshold in the metric's own unit."""
        if self.threshold is not None:
            return self.threshold
        assert self.sigmas is not None
        assert self.sigma is not None
        return self.sigmas * self.sigma

    @model_validator(mode="after")
    def _check(self) -> Self:
        scaled = self.sigmas is not None and self.sigma is not None
        if (self.threshold is None) == (not scaled) or (self.sigmas is None) != (self.sigma is None):
            raise ValueError("give either threshold, or sigmas and sigma together")
        if scaled and self.metric != "loss":
            raise ValueError(f"sigmas scale a threshold in nats, so metric must be 'loss', got {self.metric!r}")
        if self.metric == "gradient_norm" and self.limit <= 1:
            raise ValueError(f"a gradient_norm threshold is a ratio to the reference and must be > 1, got {self.limit}")
        return self


class KillRule(Section):
    """Stop a run that is worse than the reference at every look over a span of tokens (`stopping.kill_point`)."""

    criteria: list[KillCriterion] = Field(min_length=1)
    join: Literal["any", "all"] = "any"
    """Whether one criterion suffices at a look or all must hold."""
    span_tokens: Count = Field(gt=0)
    """The run must be worse at every look over this many tokens."""
    min_tokens: Count = Field(ge=0)
    """No kill before this many tokens."""
    looks: list[Count] | None = None
    """Token counts at which the rule is evaluated; every evaluation by default."""


class PatienceRule(Section):
    """Stop when the validation loss has not improved by `min_delta` nats for `evaluations` evaluations in a row."""

    evaluations: int = Field(default=5, gt=0)
    min_delta: float = Field(default=0.0, ge=0)
    min_tokens: Count = Field(default=0, ge=0)


class RegressionRule(Section):
    """Stop when the validation loss is `threshold` nats above the run's own best."""

    threshold: float = Field(gt=0)
    min_tokens: Count = Field(default=0, ge=0)


class StopRules(Section):
    """What ends a run early. A loss that is not finite always does."""

    target: TargetRule | None = None
    kill: KillRule | None = None
    patience: PatienceRule | None = None
    regression: RegressionRule | None = None
    collapse: CollapseRule | None = None
    """For a mixture of experts."""
    timeout_seconds: Seconds | None = Field(default=None, gt=0)
    """Training seconds after which the run stops (evaluation, compilation and checkpoints not counted)."""
