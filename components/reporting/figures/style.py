"""How every figure looks: 350 units wide, so that its 13-unit text is 13 px on a telephone and in a column of a page.

Colours are Okabe and Ito's (2008), told apart by readers with any colour vision; each is used for one role and is
written so that the page can exchange it for the variable of its dark theme.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

WIDTH = 350
FONT = 13
POINTS = 72
"""Matplotlib's points are our units: one unit is one CSS pixel at the figure's natural size."""

INK, MUTED, GRID, PAPER = "#1c2127", "#5f6873", "#dfe3e8", "#fefefe"
BLUE, RED, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#b87d00", "#b0588f", "#3a95c9"
FAINT = "#b4bbc4"
SERIES = (BLUE, GREEN, PURPLE, ORANGE, SKY)
"""Colours of arms, in order; red is kept for what was killed."""

VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", FAINT: "faint",
    BLUE: "blue", RED: "red", GREEN: "green", ORANGE: "orange", PURPLE: "purple", SKY: "sky",
}  # fmt: skip

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "podium",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 1.0,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw(height: float, paint: Callable[[Canvas], None], *, describe: str) -> str:
    """Paint on a canvas of 350 × `height` units and return the SVG text, the same bytes for the same data."""
    with mpl.rc_context(RC):
        canvas = Canvas(figsize=(WIDTH / POINTS, height / POINTS), dpi=POINTS)
        paint(canvas)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": describe})
    return _plain(out.getvalue(), describe)


def plane(
    canvas: Canvas,
    *,
    left: float = 48,
    right: float = 12,
    top: float = 30,
    bottom: float = 46,
    title: str = "",
    below: str = "",
) -> Axes:
    """Axes with margins in units; the y title stands over the axis, where it is read without turning the head."""
    width, height = canvas.get_figwidth() * POINTS, canvas.get_figheight() * POINTS
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = canvas.add_axes(box)
    if title:
        canvas.text(2 / width, 1 - 16 / height, title, color=MUTED, fontsize=FONT, va="baseline", ha="left")
    if below:
        axes.set_xlabel(below, labelpad=6)
    return axes


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as possible to the wanted ones, in the same order, at least `gap` apart, within the bounds
    where there is room: direct labels that don't lie on each other."""
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: list[float] = []
    for rank, index in enumerate(order):
        floor = placed[-1] + gap if placed else low
        placed.append(max(floor, min(wanted[index], high - gap * (len(order) - 1 - rank))))
    for rank in range(len(placed) - 2, -1, -1):
        placed[rank] = min(placed[rank], placed[rank + 1] - gap)
    result = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        result[index] = placed[rank]
    return result


def short(name: str, limit: int) -> str:
    """A name that fits, its middle left out: both ends of a variant's name carry meaning."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def themed(svg: str) -> str:
    """The SVG for a page: its colours are the page's variables, so that it follows the reader's light or dark theme.
    The page's style sheet has the rules that the file carries itself, and HTML needs no name space."""
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL).replace(' xmlns="http://www.w3.org/2000/svg"', "")
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


_HEAD = re.compile(r"<\?xml.*?<svg[^>]*>", re.DOTALL)


def _plain(svg: str, describe: str) -> str:
    """One `<svg>` element without matplotlib's prologue and metadata, in CSS pixels, with fonts of the reader's
    system: DejaVu, in which the layout was made, is the widest of them, so nothing grows into anything. Its ids carry
    a prefix, since ids are one name space in a page."""
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None
    _, _, width, height = view[1].split()
    salt = f"{zlib.crc32(svg.encode()):08x}"
    svg = _HEAD.sub("", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: (?:([0-9]+) )?([0-9.]+)px [^;\"]*", r"font-size: \2px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{salt}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)([^")]+)', rf"\1f{salt}-\2", svg).replace("xlink:href=", "href=")
    svg = re.sub(r"\n\s*", "\n", svg)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{float(width):g}" height="{float(height):g}" '
        f'viewBox="0 0 {float(width):g} {float(height):g}" role="img" aria-label="{_attribute(describe)}" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, DejaVu Sans, sans-serif">'
    )
    return head + svg.strip() + "\n"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


# Labels on points: as many as fit without touching a point, a border or each other.

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
