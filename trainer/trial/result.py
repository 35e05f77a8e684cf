"""What a run leaves: `result.json`, written last. What could not be measured is null, never a number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import Storage

# The files of a trial's folder.

CONFIG = "config.json"
"""The run spec, written before the trial starts."""
RESULT = "result.json"
"""Written last: its existence means that the trial is over."""
METRICS = "metrics.jsonl"
NOTE = "note.md"
LEASE = "lease.json"
"""Which process trains here."""
FALLBACKS = "memory.json"
"""What was made smaller because memory ran out, so that a restart begins with it."""
SYNC = "sync.json"
"""How far metrics were copied to MLflow."""
CHECKPOINTS = "checkpoints"


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


# `metrics.jsonl`: one JSON object a line, and the curve of evaluations in it.
#
# A train line has `step tokens train_loss learning_rate gradient_norm train_seconds`, an evaluation line has `step
# tokens val_loss val_perplexity bits_per_byte gradient_norm train_seconds` (`gradient_norm` there is the mean over
# the steps since the evaluation before), and `val_loss/<domain>` where the data has domains. A line is told by having
# `val_loss`, `train_loss` or, of a mixture's routers (`routing_metrics`), `router`. `train_seconds` is the training
# clock. A value that is not finite is written as null.

DOMAIN = "val_loss/"
"""Before a domain's name: the validation loss over its sequences alone."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation."""

    step: int
    tokens: int
    val_loss: float | None
    """Nats per token; None where it was not finite."""
    gradient_norm: float | None = None
    train_seconds: float | None = None
    bits_per_byte: float | None = None
    by_domain: Mapping[str, float | None] | None = None
    """Nats per token by domain of the text; None where the data has none."""


Curve = Sequence[Point]
"""Evaluations in the order of tokens."""


def train_line(
    step: int, tokens: int, loss: float, learning_rate: float, gradient_norm: float, seconds: float
) -> dict[str, Any]:
    """One optimizer step."""
    return {
        "step": step,
        "tokens": tokens,
        "train_loss": finite(loss),
        "learning_rate": learning_rate,
        "gradient_norm": finite(gradient_norm),
        "train_seconds": round(seconds, 4),
    }


def evaluation_line(point: Point) -> dict[str, Any]:
    """One evaluation."""
    return {
        "step": point.step,
        "tokens": point.tokens,
        "val_loss": point.val_loss,
        "val_perplexity": None if point.val_loss is None else finite(perplexity_of(point.val_loss)),
        "bits_per_byte": point.bits_per_byte,
        "gradient_norm": point.gradient_norm,
        "train_seconds": point.train_seconds,
        **{f"{DOMAIN}{name}": loss for name, loss in (point.by_domain or {}).items()},
    }


def read_lines(text: str) -> list[dict[str, float | int | None]]:
    """The whole lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    return [json.loads(line) for line in text.split("\n")[:-1] if line.strip()]


def curve_of(lines: Iterable[dict[str, float | int | None]]) -> list[Point]:
    """The evaluations among metric lines, sorted by tokens, the last of each token count."""
    points: dict[int, Point] = {}
    for line in lines:
        if "val_loss" not in line:
            continue
        tokens = line["tokens"]
        assert isinstance(tokens, int)
        points[tokens] = Point(
            step=int(line["step"] or 0),
            tokens=tokens,
            val_loss=line["val_loss"],
            gradient_norm=line.get("gradient_norm"),
            train_seconds=line.get("train_seconds"),
            bits_per_byte=line.get("bits_per_byte"),
            by_domain=_by_domain(line),
        )
    return [points[tokens] for tokens in sorted(points)]


def _by_domain(line: Mapping[str, float | int | None]) -> dict[str, float | None] | None:
    return {name.removeprefix(DOMAIN): value for name, value in line.items() if name.startswith(DOMAIN)} or None


def read_result(storage: Storage, folder: str = "") -> TrialResult | None:
    """The result of the trial in `folder`; None while it has none."""
    try:
        return TrialResult.model_validate_json(storage.read_bytes(f"{folder}/{RESULT}".lstrip("/")))
    except NotFoundError:
        return None


def read_metrics(storage: Storage, folder: str = "", *, only: str = "") -> list[dict[str, Any]]:
    """The whole lines of a trial's metrics that contain the text `only`; none where it has not written any yet."""
    try:
        text = storage.read_text(f"{folder}/{METRICS}".lstrip("/"))
    except NotFoundError:
        return []
    return read_lines("".join(f"{line}\n" for line in text.split("\n")[:-1] if only in line))


def read_curve(storage: Storage, folder: str = "") -> list[Point]:
    """The evaluations in a trial's metrics; none where it has not measured anything yet."""
    # a long run has few evaluations among many steps, and only they are parsed
    return curve_of(read_metrics(storage, folder, only='"val_loss"'))


def best_point(points: Sequence[Point]) -> Point | None:
    """The evaluation of lowest loss, the first of equals; None where none was finite."""
    known = [point for point in points if point.val_loss is not None]
    return min(known, key=lambda point: (point.val_loss, point.step), default=None)


def mean_curve(curves: Sequence[Curve]) -> list[Point]:
    """The mean over seeds at the token counts that every curve has."""
    if not curves:
        return []
    by_tokens = [{point.tokens: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in by_tokens)))
    return [_mean_point([points[tokens] for points in by_tokens]) for tokens in shared]


def _mean_point(points: Sequence[Point]) -> Point:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return Point(
        step=points[0].step,
        tokens=points[0].tokens,
        val_loss=mean([point.val_loss for point in points]),
        gradient_norm=mean([point.gradient_norm for point in points]),
        train_seconds=mean([point.train_seconds for point in points]),
        bits_per_byte=mean([point.bits_per_byte for point in points]),
    )


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or not a number: a missing measurement stays missing."""
    return value if math.isfinite(value) else None


def perplexity_of(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
