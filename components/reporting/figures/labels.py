"""Direct labels on points: as many as fit without touching a point, a border or each other, the important first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes

from podium.components.reporting.figures.style import FONT, INK, short

CHARACTER = 7.7
"""Units of a character of DejaVu Sans at 13 units, on the wide side."""
LINE = 16.0
STROKE = 1.5
"""What a line keeps free on both sides."""
RADIUS = 6.0
"""What a point keeps free around itself."""
LENGTHS = (20, 12)
"""Characters of a name: it is shortened further only where it would not fit."""

Box = tuple[float, float, float, float]
"""left, bottom, right, top in units."""


@dataclass(frozen=True)
class Label:
    """A wanted label at a point in data coordinates."""

    x: float
    y: float
    text: str
    color: str = INK
    weight: str = "normal"


def text_width(text: str) -> float:
    """Width in units that the widest font may take."""
    return CHARACTER * len(text)


def place(
    axes: Axes,
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]] = (),
) -> int:
    """Write the labels, given in the order of importance, where there is room; returns how many were written.

    The limits of the axes must be final. A label may stand right, left, above or below of its point; it keeps off
    `points` and off the polyline `line`, all in data coordinates.
    """
    position = axes.get_position()
    figure = axes.get_figure()
    assert figure is not None
    bound = figure.bbox.width - 1, position.y1 * figure.bbox.height + 12
    left, bottom = position.x0 * figure.bbox.width, position.y0 * figure.bbox.height
    taken: list[Box] = []
    for x, y in points:
        px, py = axes.transData.transform((x, y))
        taken.append((px - RADIUS, py - RADIUS, px + RADIUS, py + RADIUS))
    for px, py in _along([tuple(axes.transData.transform(point)) for point in line]):
        taken.append((px - STROKE, py - STROKE, px + STROKE, py + STROKE))
    written = 0
    for label in labels:
        for limit in LENGTHS:
            text = short(label.text, limit)
            px, py = axes.transData.transform((label.x, label.y))
            box = _free(px, py, text_width(text), (left, bottom + 1, *bound), taken)
            if box is not None:
                break
        else:
            continue
        taken.append(box)
        written += 1
        figure.text(
            box[0] / figure.bbox.width,
            (box[1] + 3.5) / figure.bbox.height,
            text,
            color=label.color,
            fontweight=label.weight,
            fontsize=FONT,
            ha="left",
            va="baseline",
        )
    return written


def _free(px: float, py: float, width: float, bounds: Box, taken: Sequence[Box]) -> Box | None:
    """The first place beside the point that is within the bounds and free."""
    for bx, by in _candidates(px, py, width):
        box = (bx, by, bx + width, by + LINE)
        inside = box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _candidates(px: float, py: float, width: float) -> list[tuple[float, float]]:
    away, half = RADIUS + 2, LINE / 2
    return [
        (px + away, py - half),
        (px - away - width, py - half),
        (px - width / 2, py + away),
        (px - width / 2, py - away - LINE),
        (px + 2, py + away),
        (px - width - 2, py + away),
        (px + 2, py - away - LINE),
        (px - width - 2, py - away - LINE),
    ]


def _along(corners: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points of a polyline, three units apart."""
    for (ax, ay), (bx, by) in pairwise(corners):
        steps = max(1, round(math.dist((ax, ay), (bx, by)) / 3))
        for step in range(steps + 1):
            yield ax + (bx - ax) * step / steps, ay + (by - ay) * step / steps


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
