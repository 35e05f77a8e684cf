"""`metrics.jsonl` as it is written: a local file that grows line by line, put whole to a store without append."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.result import METRICS, Point, evaluation_line, perplexity_of, read_lines
from podium.trainer.trial.section import format_count, format_seconds
from podium.trainer.trial.storage import Storage


class MetricsLog:
    """The metrics of one run. Lines are whole on disk as soon as they are added."""

    def __init__(self, folder: Storage, scratch: Path) -> None:
        """`scratch` is a local folder for the file where the run's folder is not on a file system."""
        self._folder = folder
        local = folder.local_path(METRICS)
        self._remote = local is None
        self._path = local or scratch / METRICS
        self._lock = threading.Lock()  # a line never lands in the middle of a copy
        self._file: FileIO | None = None

    def start(self, step: int, points: Sequence[Point] = ()) -> None:
        """Begin behind optimizer step `step`: lines past it are cut, since they will be made again.

        A folder without any lines, whose run starts from another run's checkpoint, gets that run's evaluations.
        """
        try:
            text = self._folder.read_text(METRICS)
        except NotFoundError:
            text = ""
        lines = [line for line in read_lines(text) if int(line["step"] or 0) <= step]
        lines = lines or [evaluation_line(point) for point in points]
        kept = "".join(_to_line(line) for line in lines)
        if kept != text or self._remote:
            if self._remote:
                self._path.write_text(kept)
            else:
                self._folder.write_text(METRICS, kept)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab", buffering=0)

    def add(self, line: dict[str, Any]) -> None:
        """Append one line."""
        assert self._file is not None
        with self._lock:
            self._file.write(_to_line(line).encode())

    def put(self) -> None:
        """Make what was added so far outlast this process, and this machine where the store is remote."""
        assert self._file is not None
        with self._lock:
            os.fsync(self._file.fileno())
            data = self._path.read_bytes() if self._remote else None
        if data is not None:
            self._folder.write_bytes(METRICS, data)

    @property
    def remote(self) -> bool:
        """Whether readers see only what `put` has put."""
        return self._remote

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _to_line(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


# How a run tells of itself: a line about every five seconds in a log, a progress bar on a terminal.

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
