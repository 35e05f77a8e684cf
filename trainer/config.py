"""What one training run is: the validated config that the trainer takes, that a study resolves to, and that is hashed.

Everything in `TrainConfig` decides the result and is part of a trial's fingerprint. What only says where things lie
(URIs, labels) is in `RunSpec`, around it: moving a bucket must not rename a run.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from podium.trainer.curriculum_config import CurriculumConfig
from podium.trainer.errors import ConfigError
from podium.trainer.extension_config import Extension
from podium.trainer.gpt2_config import GPT2Config, RouterConfig
from podium.trainer.model_config import ModelConfig
from podium.trainer.optimizer_config import OptimizerConfig
from podium.trainer.runtime_config import RuntimeConfig
from podium.trainer.section import Section
from podium.trainer.stop_config import KillCriterion, KillRule, PatienceRule, RegressionRule, StopRules
from podium.trainer.units import Count

__all__ = [
    "BatchConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "KillCriterion",
    "KillRule",
    "PatienceRule",
    "RegressionRule",
    "RunSpec",
    "RuntimeConfig",
    "ScheduleConfig",
    "StopRules",
    "TrainConfig",
    "load_config",
]

FORMAT_VERSION: Literal[1] = 1


class DataConfig(Section):
    """How the prepared dataset is read."""

    sequence_length: int = Field(gt=1)
    """Tokens the model sees in one sequence (T); each sequence reads T + 1 tokens of the shard."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """shuffled: every epoch in an order drawn from the seed; sequential: as the shards have them, as the speedruns do.
    Neither depends on the number of devices."""
    balance_tokens: bool = False
    """Train on as many sequences of every domain as the smallest has; evaluation is never balanced."""
    train_split: str = "train"
    validation_split: str = "validation"


class ScheduleConfig(Section):
    """Linear warm-up, then the named decay to `final_fraction` of the peak at the last step.

    `warmdown` is constant and then linear over the last steps, as the speedruns have it: the rate would be
    `final_fraction` of the peak one step after the last.
    """

    name: Literal["cosine", "constant", "warmdown"] = "cosine"
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of all steps in warm-up."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step, as a fraction of the peak."""
    warmdown_steps: Count | None = Field(default=None, gt=0)
    """Steps of the linear decay (`warmdown`); give this or warmdown_fraction."""
    warmdown_fraction: float | None = Field(default=None, gt=0, le=1)
    """The same as a share of all steps."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = (self.warmdown_steps is not None) + (self.warmdown_fraction is not None)
        if given != (self.name == "warmdown"):
            raise ValueError(
                "give one of warmdown_steps and warmdown_fraction with name 'warmdown', and neither with another, "
                f"got {self.warmdown_steps!r} and {self.warmdown_fraction!r} with {self.name!r}"
            )
        return self


class BatchConfig(Section):
    """The batch of one optimizer step; accumulation makes it the same optimisation on any number of devices."""

    sequences: int = Field(gt=0)
    """Sequences of one optimizer step over all devices."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Sequences of one forward pass on one device; by default all that the device's share of a step has."""
    fit_memory: bool = False
    """Where memory runs out, take one sequence a forward pass (the step stays as it is), then sequences of 256 tokens;
    the log and the result say so."""

    def accumulation_steps(self, world_size: int = 1) -> int:
        """Forward passes per optimizer step and device. Raises ConfigError where the batch does not divide."""
        share, rest = divmod(self.sequences, world_size)
        micro = self.micro_batch or share
        if rest or micro == 0 or share % micro:
            raise ConfigError(
                "batch.sequences: must divide by devices × micro_batch, "
                f"got {self.sequences} / ({world_size} × {micro})"
            )
        return share // micro


class EvaluationConfig(Section):
    """The declared evaluation: at every `every_steps`, and always at the last step."""

    every_steps: int = Field(gt=0)
    sequences: int | None = Field(default=None, gt=0)
    """Sequences of the validation split that are read, from its start; all of them by default."""
    batch_sequences: int = Field(default=16, gt=0)
    """Sequences of one forward pass."""


class CheckpointConfig(Section):
    """When full checkpoints are written, and how many are kept."""

    every_steps: int = Field(default=500, gt=0)
    keep_last: int = Field(default=3, gt=0)


class TrainConfig(Section):
    """Everything that decides the result of one run."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    curriculum: CurriculumConfig | None = None
    """Sequence lengths that grow while training; null: all steps alike."""
    batch: BatchConfig
    max_steps: Count | None = Field(default=None, gt=0)
    """Optimizer steps; give this or max_tokens."""
    max_tokens: Count | None = Field(default=None, gt=0)
    """Training tokens; the whole steps that fit in are run."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm; null switches clipping off."""
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopRules = StopRules()
    runtime: RuntimeConfig = RuntimeConfig()
    extension: Extension | None = None
    """A user's own code, which makes the model."""
    router: RouterConfig | None = None
    """How a mixture's routers are trained; null for a dense model, and for a mixture the defaults."""
    seed: int = Field(default=42, ge=0)
    """Seeds Python, NumPy, PyTorch and the data order."""
    preset: str = "custom"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all devices, at full length."""
        return self.batch.sequences * self.data.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.max_tokens is not None
        return max(1, self.max_tokens // self.tokens_per_step)

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run; with a curriculum the most that it can have."""
        return self.steps * self.tokens_per_step

    @property
    def mode(self) -> Literal["dense", "moe"]:
        """What a checkpoint's `mode` says."""
        return "moe" if isinstance(self.model, GPT2Config) and self.model.moe is not None else "dense"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.max_steps is None) == (self.max_tokens is None):
            raise ValueError(f"give max_steps or max_tokens, got {self.max_steps!r} and {self.max_tokens!r}")
        if self.max_tokens is not None and self.max_tokens < self.tokens_per_step:
            raise ValueError(
                f"max_tokens must be at least one step of {self.tokens_per_step} tokens, got {self.max_tokens}"
            )
        if self.schedule.warmdown_steps is not None and self.schedule.warmdown_steps > self.steps:
            raise ValueError(
                f"schedule.warmdown_steps must be at most the run's {self.steps} steps, "
                f"got {self.schedule.warmdown_steps}"
            )
        if self.curriculum is not None:
            if self.curriculum.lengths[-1] != self.data.sequence_length:
                raise ValueError(
                    f"curriculum.lengths must end with data.sequence_length = {self.data.sequence_length}, "
                    f"got {self.curriculum.lengths}"
                )
            if self.max_tokens is not None:
                raise ValueError(
                    "curriculum: when the lengths change decides the tokens, so give max_steps, got max_tokens"
                )
        self.batch.accumulation_steps()
        self._check_mixture()
        return self

    def _check_mixture(self) -> None:
        if self.mode == "dense":
            for name, given in (("router", self.router), ("stop.collapse", self.stop.collapse)):
                if given is not None:
                    raise ValueError(f"{name} is for a mixture of experts (model.moe), got {given!r}")
        elif self.curriculum is not None:
            raise ValueError("curriculum: a mixture of experts trains at one sequence length, got one that grows")
        if isinstance(self.model, GPT2Config) and self.optimizer.name != "adamw":
            raise ValueError(f"optimizer.name must be 'adamw' for GPT-2's layers, got {self.optimizer.name!r}")
        if isinstance(self.model, GPT2Config) and self.data.sequence_length > self.model.n_positions:
            raise ValueError(
                f"data.sequence_length must be at most model.n_positions = {self.model.n_positions}, "
                f"got {self.data.sequence_length}"
            )


class RunSpec(Section):
    """A run as it is started: `config.json` of its folder. Only `config` decides the result; the rest says where."""

    format_version: Literal[1] = FORMAT_VERSION
    config: TrainConfig
    dataset: str
    """URI of the prepared dataset's folder."""
    fingerprint: str | None = None
    """Identity of the trial in a study; refused on resume when it differs."""
    reference_curves: list[str] = []
    """URIs of the reference runs' folders (a run a seed); the kill rule compares with their mean."""
    continues: str | None = None
    """Fingerprint of the trial whose full checkpoint this one starts from."""
    start_checkpoint: str | None = None
    """URI of that checkpoint."""
    question: str = ""
    """What the run is to answer, for its note."""
    watch: str | None = None
    """URI of the conductor's lease; the run saves and ends when its counter stands still for 10 minutes."""
    labels: dict[str, str] = {}
    """Study, stage, variant, seed and the like, copied into the result and to MLflow as tags."""


def load_config(data: Any, *, source: str = "") -> TrainConfig:
    """Validate a mapping into a TrainConfig. Raises ConfigError listing every problem."""
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError.from_validation(error, source=source) from None
