"""Compute against quality: the frontier, with everything that another arm dominates in grey."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from podium.components.reporting.figures.data import METRICS, Arm, PlotData
from podium.components.reporting.figures.labels import Label, place
from podium.components.reporting.figures.style import BLUE, FAINT, INK, MUTED, Figure, draw, plane


@dataclass(frozen=True)
class ParetoPoint:
    """An arm: its training compute and its quality, less is better in both."""

    arm: Arm
    flops: float
    value: float


def frontier(points: list[ParetoPoint]) -> list[ParetoPoint]:
    """The points that no other one beats in one coordinate without losing in the other, by compute."""
    best = float("inf")
    kept = []
    for point in sorted(points, key=lambda point: (point.flops, point.value)):
        if point.value < best:
            kept.append(point)
            best = point.value
    return kept


def pareto_figure(data: PlotData, stage: str) -> Figure | None:
    """The plot, None for fewer than three arms with compute and quality."""
    metric = data.quality(stage)
    points = []
    for arm in data.arms(stage):
        flops = [trial.flops for trial in arm.trials if trial.finished and trial.flops]
        mean = arm.mean(metric)
        if flops and mean is not None:
            points.append(ParetoPoint(arm, statistics.fmean(flops), mean))
    if len(points) < 3:
        return None
    edge = frontier(points)
    dominated = [point for point in points if point not in edge]
    exponent = len(f"{max(p.flops for p in points):.0f}") - 1

    def paint(canvas: Canvas) -> None:
        below = f"training compute, 10{_superscript(exponent)} FLOP"
        axes = plane(canvas, left=50, right=20, title=METRICS[metric], below=below)
        axes.margins(x=0.14, y=0.26)
        axes.plot([p.flops for p in dominated], [p.value for p in dominated], "o", color=FAINT, markersize=7)
        axes.step([p.flops for p in edge], [p.value for p in edge], where="post", color=BLUE, linewidth=1.3, alpha=0.6)
        axes.plot([p.flops for p in edge], [p.value for p in edge], "o", color=BLUE, markersize=8)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10**exponent:g}"))
        axes.locator_params(axis="x", nbins=5)
        base = [p for p in points if p.arm.baseline]
        for point in base:
            axes.plot(point.flops, point.value, "o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
        wanted = [Label(p.flops, p.value, p.arm.variant, BLUE, "bold") for p in edge]
        wanted += [Label(p.flops, p.value, p.arm.variant) for p in base if p not in edge]
        wanted += [Label(p.flops, p.value, p.arm.variant, MUTED) for p in dominated if not p.arm.baseline]
        axes.set_xlim(axes.get_xlim())
        axes.set_ylim(axes.get_ylim())
        place(axes, wanted, [(p.flops, p.value) for p in points])

    caption = (
        f"{len(edge)} of {len(points)} variants are on the frontier (blue); grey ones cost as much or more and are no "
        "better. The ring is the baseline. Means over seeds; 6 FLOP per matrix parameter and token, plus attention."
    )
    describe = f"Pareto frontier of compute and quality in stage {stage}"
    return Figure(f"pareto-{stage}", "Compute against quality", caption, draw(260, paint, describe=describe), stage)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
