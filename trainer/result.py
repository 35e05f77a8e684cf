"""What a run leaves: `result.json`, written last. What could not be measured is null, never a number."""

from __future__ import annotations

from enum import StrEnum

from podium.trainer.section import Section


class Status(StrEnum):
    """How a trial ended. Every one of these is a result, not a failure of the system."""

    COMPLETED = "completed"
    TARGET_REACHED = "target_reached"
    MISSED_TARGET = "missed_target"
    KILLED = "killed"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    OUT_OF_MEMORY = "out_of_memory"
    BROKEN = "broken"
    CANCELLED = "cancelled"
    NOT_RUN_BUDGET = "not_run_budget"


class ParameterCounts(Section):
    """Exact numbers of trainable parameters, by part. `total` counts a tied matrix once."""

    total: int
    embedding: int
    attention: int
    feed_forward: int
    norm: int
    output: int
    """The output projection; 0 where it is tied to the embedding."""
    router: int = 0
    """The routers of a mixture of experts."""
    active: int | None = None
    """Parameters that one token passes through, of a mixture of experts; None where that is all."""


class Crossing(Section):
    """The first evaluation under a target loss; null where there was none."""

    loss: float
    step: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    """On the training clock."""


class Versions(Section):
    """What ran. Recorded, not hashed, but for the trainer's own sources."""

    podium: str
    commit: str | None = None
    image: str | None = None
    python: str | None = None
    torch: str | None = None
    cuda: str | None = None
    device: str | None = None
    threads: int | None = None
    world_size: int = 1


class TrialResult(Section):
    """The result of one run. Losses in nats per token; `perplexity` is exp(loss)."""

    format_version: int = 1
    run_name: str
    fingerprint: str | None = None
    labels: dict[str, str] = {}
    status: Status
    reason: str
    """One sentence: why it ended as it did."""
    seed: int
    steps: int = 0
    tokens: int = 0
    passes: float | None = None
    """Training tokens over the tokens of the training split."""
    final_train_loss: float | None = None
    final_val_loss: float | None = None
    """The declared evaluation at the last step; of a killed run, at the look where the rule was met."""
    final_val_perplexity: float | None = None
    final_bits_per_byte: float | None = None
    best_val_loss: float | None = None
    best_val_perplexity: float | None = None
    best_step: int | None = None
    target_loss: float | None = None
    reached_target: bool | None = None
    time_to_target_seconds: float | None = None
    """On the training clock; null on a miss, which takes at least `training_seconds`."""
    targets: list[Crossing] = []
    """Every declared target, the highest loss first."""
    kill_tokens: int | None = None
    """Where the kill rule was met."""
    stopped_tokens: int | None = None
    """Where that was noticed."""
    kill_detail: str | None = None
    training_seconds: float | None = None
    """Evaluation, compilation, checkpoints and untimed steps apart. Summed over attempts."""
    evaluation_seconds: float | None = None
    compile_seconds: float | None = None
    checkpoint_seconds: float | None = None
    untimed_seconds: float | None = None
    """Of the first steps, where the run was asked to leave them out of `training_seconds`."""
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    parameters: ParameterCounts | None = None
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    d_ff: int | None = None
    device_seconds: float | None = None
    """Wall-clock seconds × devices over which devices were held, lost attempts included. Filled by the conductor."""
    cost_usd: float | None = None
    """Filled by the conductor; lost attempts included."""
    attempts: int = 1
    memory_fallbacks: list[str] = []
    """What was made smaller because memory ran out, a sentence each."""
    final_val_loss_by_domain: dict[str, float] | None = None
    """The final evaluation by domain of the text, where the data has domains."""
    log_tail: list[str] = []
    """The last 20 lines of the log of a broken trial."""
    final_model: str | None = None
    best_model: str | None = None
    last_checkpoint: str | None = None
    """Keys of the files, relative to the run's folder, so that a moved store stays readable."""
    versions: Versions | None = None

    @property
    def clocks(self) -> tuple[float | None, ...]:
        """Seconds of everything that the trainer's own clock counts apart."""
        return (
            self.training_seconds,
            self.evaluation_seconds,
            self.compile_seconds,
            self.checkpoint_seconds,
            self.untimed_seconds,
        )
