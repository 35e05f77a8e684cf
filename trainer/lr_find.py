"""Learning-rate range test (Smith, 2017): the loss while the rate rises exponentially, and where it falls most.

The run that is tested is put back afterwards: weights, optimizer, loss scale, data position and random state.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from dataclasses import asdict, dataclass
from typing import Any

from podium.trainer.seeding import random_state, restore_random_state
from podium.trainer.setup import Parts
from podium.trainer.step_aware import after_step
from podium.trainer.storage import Storage

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
