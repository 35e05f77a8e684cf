"""What one training run is: the validated config that the trainer takes, that a study resolves to, and that is hashed.

Everything in `TrainConfig` decides the result and is part of a trial's fingerprint. What only says where things lie
(URIs, labels) is in `RunSpec`, around it: moving a bucket must not rename a run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from podium.trainer.builtin.model_config import ModelConfig, RouterConfig
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.section import Count, Section, kind_field, kind_tag
from podium.trainer.trial.stopping import StopRules

# The sequence-length curriculum, as a config, and what it makes of one optimizer step. Without torch.


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one optimizer step trains on, over all ranks."""

    sequences: int
    length: int
    """Tokens of each sequence."""
    cropped: bool = False
    """Whether each is the beginning of a longer sequence, whose rest is left out; else the tokens are cut anew."""

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return self.sequences * self.length


class CurriculumConfig(Section):
    """Sequence lengths that grow, each left once the training loss has reached a plateau.

    A plateau: at a step that is a multiple of `window` steps after the length began, two windows or more, the mean
    training loss of the last `window` steps is less than `min_improvement` nats below that of the window before. The
    evaluation is at full length always.
    """

    lengths: list[int] = Field(default=[256, 512, 768, 1024], min_length=2)
    """Tokens of a sequence, ascending; the last is `data.sequence_length`."""
    mode: Literal["crop", "reshape"] = "crop"
    """crop: each sequence is cut short, so that a step has fewer tokens; reshape: the step's tokens are cut into more
    sequences, so that it keeps them, to within one sequence."""
    window: int = Field(default=50, gt=0)
    """Optimizer steps over which losses are averaged."""
    min_improvement: float = Field(default=0.05, ge=0)
    """Nats."""
    latest_fraction: float | None = Field(default=0.6, gt=0, lt=1)
    """Share of the run's steps after which the length is full whatever the loss did: the i-th of n moves up comes after
    i / n of it at the latest. Null: only a plateau moves up."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lengths[0] < 2 or self.lengths != sorted(set(self.lengths)):
            raise ValueError(f"lengths must ascend from at least 2, got {self.lengths}")
        return self

    def shape(self, sequences: int, full_length: int, length: int) -> StepShape:
        """A step at `length`, of a run whose steps have `sequences` of `full_length`."""
        if length == full_length:
            return StepShape(sequences, length)
        if self.mode == "crop":
            return StepShape(sequences, length, cropped=True)
        return StepShape(sequences * full_length // length, length)

    def keeps_tokens(self, sequences: int, full_length: int) -> bool:
        """Whether every step has exactly the tokens of a full one, so that evaluations come at known counts."""
        return all(
            self.shape(sequences, full_length, length).tokens == sequences * full_length for length in self.lengths
        )


# How a run's arithmetic is done, as a config; `podium.trainer.builtin.setup` sets it up.


class RuntimeConfig(Section):
    """How the arithmetic is done. Part of the fingerprint: it decides the last bits."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 where the device has it, else fp16 with a gradient scaler, fp32 on a CPU."""
    compile: Literal["auto", "always", "never"] = "auto"
    """auto: compile on CUDA for runs long enough to earn it back."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """`torch.compile`'s mode: reduce-overhead (CUDA graphs) serves small models, max-autotune compiles for long."""
    tune_kernels: bool = False
    """Search more shapes for the compiler's own kernels (coordinate descent): minutes more for some speed."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of PyTorch. Resume is bit-exact only for the same number, so a study states it."""
    deterministic: bool = True
    """On a GPU: kernels that give the same bits every time, which a bit-exact resume takes. They cost some speed."""
    attention: Literal["auto", "cudnn", "flash"] = "auto"
    """On a GPU: whose attention kernel. auto: PyTorch chooses."""
    head_chunk_tokens: int | None = Field(default=None, gt=0)
    """On a GPU: tokens whose logits exist at once in training; null: all of a forward pass. Saves memory, not time."""
    untimed_steps: int = Field(default=0, ge=0)
    """First steps that the training clock leaves out (reported apart), as the 2024 speedruns leave out 10."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention == "cudnn" and self.deterministic:
            raise ValueError("cuDNN's attention has no deterministic kernel: deterministic must be false, got true")
        return self


# Which optimizer: a config for each.


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


# A user's own code in a run, as a config. Without torch.


class Extension(Section):
    """A Python module whose function makes the model: `factory(config, **options)`.

    It is code, and whoever trains or evaluates with this config runs it: name only what you would run yourself.
    """

    module: str
    """An import name that the run's image has (`lab.variants`), or a file shipped with the study (`mine.py`)."""
    factory: str = "build_model"
    """The function's name."""
    options: dict[str, Any] = {}
    """Keyword arguments for it."""
    text: str | None = None
    """The shipped file's text, which the study fills in: so it is part of every identity and of every checkpoint."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the text; filled in with it, and a text with another sum is refused."""

    @property
    def is_file(self) -> bool:
        """Whether `module` is a file rather than an import name."""
        return self.module.endswith(".py")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_file and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", self.module):
            raise ValueError(f"module must be an import name or a file that ends with .py, got {self.module!r}")
        if not self.is_file and (self.text is not None or self.sha256 is not None):
            raise ValueError(f"text and sha256 are of a shipped file, not of an import name, got {self.module!r}")
        if self.is_file and self.text is None:
            raise ValueError(f"the text of a shipped file must come with it, got none for {self.module!r}")
        if self.sha256 is not None and self.sha256 != sha256_of_text(str(self.text)):
            raise ValueError(f"text must have the sha256 beside it, got another for {self.module!r}")
        if not self.factory.isidentifier():
            raise ValueError(f"factory must be a function's name, got {self.factory!r}")
        return self


def with_text(extension: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An extension as a user writes it, with the text of its file, which is sought from `folder` on.

    One that is no file, or has its text, is returned as it is. Raises ConfigError for a file that can't be read.
    """
    module = extension.get("module")
    if not isinstance(module, str) or not module.endswith(".py") or "text" in extension:
        return extension
    try:
        text = (folder / module).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(Problem("module", f"must be a file in or below {folder}, got {module!r}: {why}")) from None
    # a name without the folder it came from: moving the study must not make it another one
    return {**extension, "module": Path(module).name, "text": text, "sha256": sha256_of_text(text)}


def sha256_of_text(text: str) -> str:
    """The sum by which a shipped file is known."""
    return hashlib.sha256(text.encode()).hexdigest()


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
        return "dense" if self.model.mixture is None else "moe"

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
        self.model.check_run(optimizer=self.optimizer.name, sequence_length=self.data.sequence_length)


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
