"""`metrics.jsonl`: one JSON object a line, and the curve of evaluations in it.

A train line has `step tokens train_loss learning_rate gradient_norm train_seconds`, an evaluation line has
`step tokens val_loss val_perplexity bits_per_byte gradient_norm train_seconds` (`gradient_norm` there is the mean over
the steps since the evaluation before), and `val_loss/<domain>` where the data has domains. A line is told by having
`val_loss`, `train_loss` or, of a mixture's routers (`routing_metrics`), `router`. `train_seconds` is the training
clock. A value that is not finite is written as null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
