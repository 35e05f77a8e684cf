"""Training curves of a stage together: the baseline with its noise, who went on, who was killed and where; and the
same as gaps to the baseline at equal tokens, where differences of a hundredth of a nat can be seen."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from podium.components.reporting.figures.data import PlotStage
from podium.components.reporting.figures.style import FAINT, INK, RED, SERIES, draw, plane, short, spread
from podium.components.reporting.results_csv import thinned
from podium.components.reporting.table import Figure
from podium.components.study.verdict import Arm
from podium.trainer.trial.section import format_count

MAX_GREY = 40
MAX_NAMED = 8
LABEL_WIDTH = 104
HEIGHT = 270
WARM_UP = 0.25
"""The first quarter of the tokens falls steeply and would press everything else together: the axis starts below it."""


@dataclass(frozen=True)
class _Line:
    arm: Arm
    points: list[tuple[int, float]]
    deviations: list[float]
    """Sample standard deviation over seeds at each point; empty for fewer than two seeds."""
    kills: list[int]
    """Tokens at which its trials met the kill rule."""
    killed: bool
    """Whether all of them did."""


def curves_figure(stage: PlotStage) -> Figure | None:
    """Losses against tokens, None where no trial of the stage has a curve."""
    lines = _lines(stage)
    if not lines:
        return None
    picture = _Picture(stage, lines)
    svg = picture.draw(
        "validation loss, nats per token", f"Validation loss against training tokens in stage {stage.name}"
    )
    above = "The first quarter of the training may lie above the picture."
    return Figure(f"curves-{stage.name}", f"Training curves, {stage.name}", picture.caption(above), svg, stage.name)


def gaps_figure(stage: PlotStage) -> Figure | None:
    """Losses minus the baseline's mean at equal tokens, None without a baseline or anything to compare with it."""
    lines = _lines(stage)
    base = next((dict(line.points) for line in lines if line.arm.is_baseline), None)
    if base is None:
        return None
    gaps = []
    for line in lines:
        kept = [index for index, (tokens, _) in enumerate(line.points) if tokens in base]
        points = [(tokens, loss - base[tokens]) for tokens, loss in (line.points[index] for index in kept)]
        deviations = [line.deviations[index] for index in kept] if line.deviations else []
        gaps.append(replace(line, points=points, deviations=deviations))
    gaps = [line for line in gaps if len(line.points) > 1]
    if len(gaps) < 2:
        return None
    picture = _Picture(stage, gaps)
    describe = f"Gap of the validation loss to the baseline against training tokens in stage {stage.name}"
    svg = picture.draw("gap to the baseline, nats per token", describe)
    caption = picture.caption("Below the baseline is better; the first quarter may lie outside the picture.")
    return Figure(f"gaps-{stage.name}", f"Gap to the baseline, {stage.name}", caption, svg, stage.name)


class _Picture:
    """Which lines are drawn, named and coloured, and how."""

    def __init__(self, stage: PlotStage, lines: list[_Line]) -> None:
        self.lines = lines
        self.arms = len(stage.arms(stage.metric))
        self.named = _named(stage, lines)
        grey = [line for line in lines if line not in self.named]
        self.shown = grey[:: max(1, -(-len(grey) // MAX_GREY))]
        self.longest = max(line.points[-1][0] for line in lines)
        self.low, self.high = _limits([*self.named, *self.shown], self.longest)

    def draw(self, title: str, describe: str) -> str:
        def paint(canvas: Canvas) -> None:
            axes = plane(canvas, left=54, right=LABEL_WIDTH, title=title, below="training tokens")
            axes.set_xlim(0, self.longest)
            axes.set_ylim(self.low, self.high)
            for line in self.shown:
                axes.plot(*zip(*line.points, strict=True), color=FAINT, linewidth=1)
                _mark_kill(axes, line)
            colors = _colors(self.named)
            for line, color in zip(self.named, colors, strict=True):
                _paint_line(axes, line, color)
            self._write_names(axes, colors)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
            axes.locator_params(axis="x", nbins=3)

        return draw(HEIGHT, paint, describe=describe)

    def _write_names(self, axes: Axes, colors: list[str]) -> None:
        ends = [min(max(line.points[-1][1], self.low), self.high) for line in self.named]
        unit = (self.high - self.low) / (HEIGHT - 76)
        heights = spread(ends, 16 * unit, self.low + 4 * unit, self.high - 4 * unit)
        for line, color, y, end in zip(self.named, colors, heights, ends, strict=True):
            axes.annotate(
                short(line.arm.name, 12),
                (self.longest, y),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                color=color,
                annotation_clip=False,
                fontweight="bold" if line.arm.is_baseline else "normal",
            )
            leader = [line.points[-1][0], self.longest * 1.03], [end, y]
            axes.plot(*leader, color=color, linewidth=0.7, clip_on=False, linestyle=(0, (2, 2)))

    def caption(self, last: str) -> str:
        parts = []
        if any(line.deviations for line in self.lines):
            parts.append("Lines are means over seeds.")
        if any(line.arm.is_baseline and line.deviations for line in self.named):
            parts.append("The band is the baseline's mean ± 2 SD over its seeds.")
        if any(line.kills for line in self.lines):
            parts.append("× marks where the kill rule was met.")
        drawn = len(self.named) + len(self.shown)
        if drawn < self.arms:
            parts.append(f"{drawn} of {self.arms} variants are drawn.")
        return " ".join([*parts, last])


def _lines(stage: PlotStage) -> list[_Line]:
    """A line for each arm that has a curve, at the tokens that all of its curves have."""
    lines = []
    for arm in stage.arms(stage.metric):
        trials = stage.of(arm)
        curves = [dict(thinned(trial.curve)) for trial in trials if trial.curve]
        shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if not shared:
            continue
        points = [(tokens, statistics.fmean(curve[tokens] for curve in curves)) for tokens in shared]
        several = len(curves) > 1
        deviations = [statistics.stdev([curve[tokens] for curve in curves]) for tokens in shared] if several else []
        kills = [kill for trial in trials if trial.result and (kill := trial.result.kill_tokens) is not None]
        lines.append(_Line(arm, points, deviations, kills, len(kills) == len(trials)))
    return lines


def _named(stage: PlotStage, lines: list[_Line]) -> list[_Line]:
    """Baseline, promoted, then the best: as many as can be labelled."""
    rank = {arm.name: place for place, arm in enumerate(stage.ranked())}

    def importance(line: _Line) -> tuple[bool, bool, int]:
        return not line.arm.is_baseline, line.arm.name not in stage.promoted, rank.get(line.arm.name, len(rank))

    return sorted(lines, key=importance)[:MAX_NAMED]


def _colors(lines: list[_Line]) -> list[str]:
    """Ink for the baseline, red for an arm that was killed, then the series in turn."""
    colors, turn = [], 0
    for line in lines:
        if line.arm.is_baseline:
            colors.append(INK)
        elif line.killed:
            colors.append(RED)
        else:
            colors.append(SERIES[turn % len(SERIES)])
            turn += 1
    return colors


def _limits(lines: list[_Line], longest: int) -> tuple[float, float]:
    late = [value for line in lines for tokens, value in line.points if tokens >= WARM_UP * longest]
    values = late or [value for line in lines for _, value in line.points]
    base = next((line for line in lines if line.arm.is_baseline and line.deviations), None)
    if base is not None:
        values += [base.points[-1][1] - 2 * base.deviations[-1], base.points[-1][1] + 2 * base.deviations[-1]]
    low, high = min(values), max(values)
    # a diverging arm must not flatten the others: most of the values decide, the rest runs out of the picture
    middle = statistics.median(values)
    high = min(high, middle + 4 * (middle - low)) if middle > low else high
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _paint_line(axes: Axes, line: _Line, color: str) -> None:
    xs, ys = zip(*line.points, strict=True)
    if line.arm.is_baseline and line.deviations:
        floor = [y - 2 * deviation for y, deviation in zip(ys, line.deviations, strict=True)]
        roof = [y + 2 * deviation for y, deviation in zip(ys, line.deviations, strict=True)]
        axes.fill_between(xs, floor, roof, color=color, alpha=0.14, linewidth=0)
    axes.plot(xs, ys, color=color, linewidth=2.4 if line.arm.is_baseline else 1.7, zorder=3)
    _mark_kill(axes, line)


def _mark_kill(axes: Axes, line: _Line) -> None:
    for kill in line.kills:
        tokens, value = min(line.points, key=lambda point, at=kill: abs(point[0] - at))  # type: ignore[misc]
        axes.plot(tokens, value, "x", color=RED, markersize=8, markeredgewidth=2.2, zorder=5)
