"""How a run tells of itself: a line about every five seconds in a log, a progress bar on a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from podium.trainer.curve import Point
from podium.trainer.stopping import perplexity_of
from podium.trainer.units import format_count, format_seconds

INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is."""

    step: int
    steps: int
    tokens: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None


class Reporter(Protocol):
    """Where a run's news go."""

    def say(self, text: str) -> None:
        """A sentence."""

    def progress(self, progress: Progress) -> None:
        """Where the run is; called often."""

    def evaluated(self, point: Point) -> None:
        """An evaluation."""

    def close(self) -> None:
        """The run is over."""


class LogReporter:
    """Lines on stdout."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """See Reporter."""
        print(text, flush=True)

    def progress(self, progress: Progress) -> None:
        """See Reporter. Most calls print nothing."""
        now = time.monotonic()
        if now - self._last >= INTERVAL_SECONDS:
            self._last = now
            self.say(describe(progress))

    def evaluated(self, point: Point) -> None:
        """See Reporter."""
        self.say(describe_evaluation(point))

    def close(self) -> None:
        """See Reporter."""


class BarReporter:
    """A progress bar on a terminal, with what is worth keeping above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", total=None, loss="–", speed="–")
        self._bar.start()

    def say(self, text: str) -> None:
        """See Reporter."""
        self._bar.console.print(text, markup=False, highlight=False)

    def progress(self, progress: Progress) -> None:
        """See Reporter."""
        speed, loss = progress.tokens_per_second, progress.loss
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.steps,
            loss="–" if loss is None else f"{loss:.4f}",
            speed="–" if speed is None else format_count(speed),
        )

    def evaluated(self, point: Point) -> None:
        """See Reporter."""
        self.say(describe_evaluation(point))

    def close(self) -> None:
        """See Reporter."""
        self._bar.stop()


def describe(progress: Progress) -> str:
    """A progress line."""
    loss = "not finite" if progress.loss is None else f"{progress.loss:.4f}"
    parts = [
        f"step {progress.step}/{progress.steps} ({progress.step / progress.steps:.0%})",
        f"{format_count(progress.tokens)} tokens",
        f"loss {loss}",
    ]
    if progress.tokens_per_second is not None:
        parts.append(f"{format_count(progress.tokens_per_second)} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"ETA {format_seconds(progress.seconds_left)}")
    return "  ".join(parts)


def describe_evaluation(point: Point) -> str:
    """A line about an evaluation."""
    if point.val_loss is None:
        return f"step {point.step}  validation loss not finite"
    bits = "" if point.bits_per_byte is None else f"  {point.bits_per_byte:.4f} bits/byte"
    perplexity = perplexity_of(point.val_loss)
    return f"step {point.step}  validation loss {point.val_loss:.4f}  perplexity {perplexity:.2f}{bits}"
