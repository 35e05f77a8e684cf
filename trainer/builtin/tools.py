"""Learning-rate range test (Smith, 2017): the loss while the rate rises exponentially, and where it falls most.

The run that is tested is put back afterwards: weights, optimizer, loss scale, data position and random state.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.data.loader import TokenStream
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.setup import Parts, Precision, after_step, build_parts, random_state, restore_random_state
from podium.trainer.trial.errors import CheckpointError, NotFoundError
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.storage import Storage, open_storage, split_uri

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss; 100 steps are few, so it looks back over about ten."""
STOP_FACTOR = 4.0
"""The test ends when the smoothed loss is this many times its best."""
SKIPPED_STEPS = 10
"""At the start the smoothed loss is of too few steps for a slope."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test found. Losses in nats; one entry a step."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggested: float | None
    """The rate of the steepest fall of the smoothed loss over log rate; None where it never fell."""
    ended: str
    """Why it ended."""


def find_learning_rate(parts: Parts, *, low: float = 1e-8, high: float = 1.0, steps: int = 100) -> RangeTest:
    """Take up to `steps` optimizer steps with rates from `low` to `high`, then put everything back."""
    held = _hold(parts)
    try:
        rates, losses, smoothed, ended = _raise_rate(parts, low, high, steps)
    finally:
        _put_back(parts, held)
    return RangeTest(rates, losses, smoothed, steepest(rates, smoothed), ended)


def steepest(rates: list[float], smoothed: list[float]) -> float | None:
    """The rate at which `smoothed` falls fastest over log rate, by central differences behind the first steps."""
    slopes = {
        index: (smoothed[index + 1] - smoothed[index - 1]) / math.log(rates[index + 1] / rates[index - 1])
        for index in range(max(1, SKIPPED_STEPS), len(rates) - 1)
    }
    index = min(slopes, key=lambda index: slopes[index], default=None)
    return rates[index] if index is not None and slopes[index] < 0 else None


def write_range_test(test: RangeTest, folder: Storage) -> None:
    """`lr_find.csv`, `lr_find.json` and the plot `lr_find.svg`."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss", "smoothed_loss"])
    writer.writerows(
        [step, rate, loss, smooth]
        for step, (rate, loss, smooth) in enumerate(zip(test.rates, test.losses, test.smoothed, strict=True), 1)
    )
    folder.write_text("lr_find.csv", table.getvalue())
    summary = {key: value for key, value in asdict(test).items() if key in ("suggested", "ended")}
    folder.write_json(
        "lr_find.json",
        {
            "suggested_learning_rate": summary["suggested"],
            "ended": summary["ended"],
            "steps": len(test.rates),
            "lowest_rate": test.rates[0],
            "highest_rate": test.rates[-1],
            "best_smoothed_loss": min(test.smoothed),
        },
    )
    folder.write_bytes("lr_find.svg", plot(test))


def plot(test: RangeTest) -> bytes:
    """The curve as SVG, with the suggested rate marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="0.75", linewidth=1, label="loss")
    axes.plot(test.rates, test.smoothed, color="C0", label="smoothed")
    if test.suggested is not None:
        axes.axvline(test.suggested, color="C3", linestyle="--", label=f"suggested {test.suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (nats)")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _raise_rate(parts: Parts, low: float, high: float, steps: int) -> tuple[list[float], list[float], list[float], str]:
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for step in range(1, steps + 1):
        rate = low * (high / low) ** ((step - 1) / max(1, steps - 1))
        loss = parts.stepper.step(rate, *parts.loader.next_batch())[0].item()
        after_step(parts.model, step)
        if not math.isfinite(loss):
            return rates, losses, smoothed, f"the loss was not finite at rate {rate:.3g}"
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(average / (1 - SMOOTHING**step))
        if smoothed[-1] > STOP_FACTOR * min(smoothed):
            return rates, losses, smoothed, f"the loss was {STOP_FACTOR:g} times its best at rate {rate:.3g}"
    return rates, losses, smoothed, f"all {steps} steps done"


def _hold(parts: Parts) -> dict[str, Any]:
    scaler = parts.stepper.scaler
    return {
        "model": copy.deepcopy(parts.model.state_dict()),
        "optimizer": copy.deepcopy(parts.optimizer.state_dict()),
        "scaler": None if scaler is None else scaler.state_dict(),
        "loader": parts.loader.state_dict(),
        "random": random_state(),
    }


def _put_back(parts: Parts, held: dict[str, Any]) -> None:
    parts.model.load_state_dict(held["model"])
    parts.optimizer.load_state_dict(held["optimizer"])
    if parts.stepper.scaler is not None:
        parts.stepper.scaler.load_state_dict(held["scaler"])
    parts.loader.load_state_dict(held["loader"])
    restore_random_state(held["random"])


# Overfit check: a model that can't learn 1,024 tokens by heart has a bug or a hopeless recipe.

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


# Text from a trained model, a token at a time.
#
# T tokens so far  V vocabulary


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: list[int],
    *,
    tokens: int,
    context: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    end: int | None = None,
    seed: int = 42,
) -> Iterator[int]:
    """Up to `tokens` ids after the prompt, which must not be empty; ends before the id `end`.

    The model sees the last `context` tokens. Temperature 0 takes the likeliest token always; `top_k` samples among the
    k likeliest.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(tokens):
        idx_1T = torch.tensor([ids[-context:]], device=device)
        logits_V = model(idx_1T)[0][0, -1].float().cpu()
        chosen = _choose(logits_V, temperature, top_k, generator)
        if chosen == end:
            return
        ids.append(chosen)
        yield chosen


def _choose(logits_V: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        least = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


# A model's two files on this machine, wherever they lie.


@contextmanager
def local_model(uri: str) -> Iterator[Path]:
    """The path of a `.safetensors` with its `.json` beside it; a copy where `uri` is remote. Raises CheckpointError."""
    folder, name = split_uri(uri)
    storage = open_storage(folder)
    local = storage.local_path(name)
    if local is not None:
        yield local
        return
    with scratch_folder("model") as scratch:
        path = scratch / name
        try:
            storage.download(name, path)
            storage.download(Path(name).with_suffix(".json").name, path.with_suffix(".json"))
        except NotFoundError as error:
            raise CheckpointError(str(error)) from None
        yield path
