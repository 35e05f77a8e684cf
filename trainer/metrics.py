"""`metrics.jsonl` as it is written: a local file that grows line by line, put whole to a store without append."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from podium.trainer.curve import DOMAIN, Point, read_lines
from podium.trainer.errors import NotFoundError
from podium.trainer.state import finite
from podium.trainer.stopping import perplexity_of
from podium.trainer.storage import Storage

METRICS = "metrics.jsonl"


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


def _to_line(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
