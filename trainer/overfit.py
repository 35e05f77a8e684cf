"""Overfit check: a model that can't learn 1,024 tokens by heart has a bug or a hopeless recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from podium.trainer.config import TrainConfig
from podium.trainer.data.stream import TokenStream
from podium.trainer.distributed import Ranks
from podium.trainer.precision import Precision
from podium.trainer.setup import build_parts
from podium.trainer.step_aware import after_step

TOKENS = 1024
MAX_LOSS = 0.1
"""Nats a token under which the text is known by heart."""
_WARMUP_STEPS = 10


@dataclass(frozen=True)
class OverfitResult:
    """What the check found."""

    passed: bool
    loss: float
    """Of the last step, in nats."""
    steps: int
    tokens: int


def overfit(config: TrainConfig, data: Path, precision: Precision, *, max_steps: int = 500) -> OverfitResult:
    """Train on the first 1,024 tokens of the training split until the loss is under 0.1, for `max_steps` at most.

    The rate is the config's peak after a short warm-up, without weight decay, which works against learning by heart.
    Raises DataError where the split is shorter.
    """
    length = min(config.data.sequence_length, TOKENS)
    sequences = TOKENS // length
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"sequence_length": length}),
            "batch": config.batch.model_copy(update={"sequences": sequences, "micro_batch": None}),
            "optimizer": config.optimizer.model_copy(update={"weight_decay": 0.0}),
        }
    )
    parts = build_parts(config, data, precision, Ranks())
    x_BT, y_BT = TokenStream(data, config.data.train_split).windows(np.arange(sequences), length)
    loss = float("nan")
    for step in range(1, max_steps + 1):
        rate = config.optimizer.learning_rate * min(1.0, step / _WARMUP_STEPS)
        loss = parts.stepper.step(rate, x_BT, y_BT)[0].item()
        after_step(parts.model, step)
        if loss < MAX_LOSS:
            return OverfitResult(True, loss, step, sequences * length)
    return OverfitResult(False, loss, max_steps, sequences * length)
