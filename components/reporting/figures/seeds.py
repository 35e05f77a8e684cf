"""Every seed of every arm, and the arms' differences to the baseline with their intervals."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from podium.components.reporting import table
from podium.components.reporting.figures.data import METRICS, Difference, PlotStage
from podium.components.reporting.figures.style import BLUE, FAINT, GREEN, GRID, INK, MUTED, draw, plane, short
from podium.components.reporting.table import Figure
from podium.components.study.verdict import Arm
from podium.components.verdicts.stats import interval, pooled_over

MAX_ARMS = 16
ROW = 46.0


def differences(stage: PlotStage) -> list[Difference]:
    """Each arm's mean minus the baseline's with the two-sided 1 - 2·alpha interval by pooled variance: the verdict's
    where the stage has them, else computed from its trials."""
    if stage.differences:
        return list(stage.differences)
    arms = stage.ranked()
    base = next((arm for arm in arms if arm.is_baseline), None)
    noise = pooled_over(arms)
    if base is None or noise.sd is None:
        return []
    found = []
    for arm in stage.arms(stage.metric):
        if arm.n and not arm.is_baseline:
            value, error = arm.mean - base.mean, noise.sd * math.sqrt(1 / arm.n + 1 / base.n)
            found.append(Difference(arm.name, value, *interval(value, error, noise.degrees_of_freedom, stage.alpha)))
    return found


def seeds_figure(stage: PlotStage) -> Figure | None:
    """Seed dots with mean and interval per arm, best first; None where no arm has two seeds."""
    metric, alpha = stage.metric, stage.alpha
    ranked = stage.ranked()
    noise = pooled_over(ranked)
    sd = noise.sd
    if sd is None:
        return None
    shown = _first(ranked)
    base = next((arm.mean for arm in ranked if arm.is_baseline), None)

    def paint(canvas: Canvas) -> None:
        axes = _rows(canvas, len(shown), METRICS[metric])
        if base is not None:
            _reference(axes, base, len(shown), MUTED, dashed=True)
        spread: list[float] = []
        for place, arm in enumerate(shown):
            values, mean = list(arm.values.values()), arm.mean
            color = INK if arm.is_baseline else GREEN if place == 0 else BLUE
            ends = interval(mean, sd / math.sqrt(arm.n), noise.degrees_of_freedom, alpha)
            spread += [*values, *ends]
            axes.plot(ends, [place, place], color=color, linewidth=2, alpha=0.6)
            axes.plot(values, [place] * arm.n, "o", color=color, markersize=7, alpha=0.5, markeredgewidth=0)
            axes.plot(mean, place, "|", color=color, markersize=15, markeredgewidth=2.4)
            role = " · baseline" if arm.is_baseline else ""
            _name(axes, place, arm.name, f"{table.of_metric(metric, mean)}{role}", color)
        _limits(axes, spread)

    caption = (
        f"A dot a seed, a bar the mean, a line the {100 * (1 - 2 * alpha):.0f}\u00a0% interval by pooled variance; "
        "the dashed line is the baseline's mean. Less is better."
    )
    if len(shown) < len(ranked):
        caption += f" The best {len(shown) - 1} of {len(ranked)} variants and the baseline."
    svg = draw(_height(len(shown)), paint, describe=f"Values of every seed in stage {stage.name}")
    return Figure(f"seeds-{stage.name}", f"Every seed, {stage.name}", caption, svg, stage.name)


def forest_figure(stage: PlotStage) -> Figure | None:
    """Differences to the baseline with intervals, best first; None where none can be given."""
    found = sorted(differences(stage), key=lambda difference: difference.value)[:MAX_ARMS]
    if not found:
        return None
    decimals = table.decimals_of(stage.metric)

    def paint(canvas: Canvas) -> None:
        axes = _rows(canvas, len(found), f"difference to the baseline, {METRICS[stage.metric].split(', ')[-1]}")
        _reference(axes, 0.0, len(found), INK, dashed=False)
        for place, item in enumerate(found):
            color = GREEN if item.high < 0 else BLUE
            axes.plot([item.low, item.high], [place, place], color=color, linewidth=2.2, solid_capstyle="round")
            axes.plot(item.value, place, "D", color=color, markersize=7)
            p = f" · p {table.p_value(item.p)}" if item.p is not None else ""
            _name(axes, place, item.variant, table.signed(item.value, decimals) + p, color)
        _limits(axes, [0.0, *(bound for item in found for bound in (item.low, item.high))])

    caption = (
        f"Left of the line is better than the baseline. Lines are {100 * (1 - 2 * stage.alpha):.0f}\u00a0% intervals "
        "by pooled variance; green ones lie wholly on the better side."
    )
    svg = draw(_height(len(found)), paint, describe=f"Differences to the baseline in stage {stage.name}")
    name = f"differences-{stage.name}"
    return Figure(name, f"Differences to the baseline, {stage.name}", caption, svg, stage.name)


def _first(ranked: list[Arm]) -> list[Arm]:
    if len(ranked) <= MAX_ARMS:
        return ranked
    head = ranked[: MAX_ARMS - 1]
    base = [arm for arm in ranked if arm.is_baseline and arm not in head]
    return head + (base or ranked[MAX_ARMS - 1 : MAX_ARMS])


def _height(rows: int) -> float:
    return rows * ROW + 60


def _rows(canvas: Canvas, rows: int, below: str) -> Axes:
    """A plane of rows from the top down, each with room for its name over its marks."""
    axes = plane(canvas, left=12, right=12, top=8, bottom=52, below=below)
    axes.set_ylim(rows - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x", color=GRID)
    axes.spines["bottom"].set_color(FAINT)
    return axes


def _name(axes: Axes, place: int, name: str, value: str, color: str) -> None:
    above = place - 0.36
    line = axes.get_yaxis_transform()
    room = 40 - len(value)
    axes.text(0, above, short(name, room), transform=line, va="center", ha="left", color=color, fontweight="bold")
    axes.text(1, above, value, transform=line, va="center", ha="right", color=INK)


def _reference(axes: Axes, value: float, rows: int, color: str, *, dashed: bool) -> None:
    """A vertical line beside the marks of each row, left out where the names stand."""
    style: str | tuple[int, tuple[int, int]] = (0, (3, 3)) if dashed else "solid"
    tops, ends = [place - 0.16 for place in range(rows)], [place + 0.3 for place in range(rows)]
    axes.vlines([value] * rows, tops, ends, color=color, linewidth=1.2, linestyle=style)


def _limits(axes: Axes, values: list[float]) -> None:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=4)
