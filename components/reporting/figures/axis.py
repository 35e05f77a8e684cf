"""Quality against the values of one axis, the other axes at the baseline's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from podium.components.reporting.figures.data import METRICS, Arm, PlotData
from podium.components.reporting.figures.labels import Label, place, text_width
from podium.components.reporting.figures.style import BLUE, INK, MUTED, PAPER, RED, Figure, draw, plane, short
from podium.components.reporting.numbers import bits_per_byte, perplexity

MAX_TICKS = 6
MAX_DOTS = 400


def along(data: PlotData, stage: str, key: str) -> list[tuple[str, Arm]]:
    """(value, arm) of the arms that differ from the baseline in this axis alone, by value. Where the rows name no
    baseline, the commonest value of every axis stands for its."""
    arms = [arm for arm in data.arms(stage) if key in arm.trials[0].axes]
    base = next((arm.trials[0].axes for arm in arms if arm.baseline), None)
    if base is None:
        values = {axis: [arm.trials[0].axes[axis] for arm in arms if axis in arm.trials[0].axes] for axis in data.axes}
        base = {axis: statistics.mode(given) for axis, given in values.items() if given}
    arms = [arm for arm in arms if all(v == base.get(k) for k, v in arm.trials[0].axes.items() if k != key)]
    pairs = [(arm.trials[0].axes[key], arm) for arm in arms]
    if all(_numeric(value) for value, _ in pairs):
        return sorted(pairs, key=lambda pair: float(pair[0]))
    return pairs


def axis_figure(data: PlotData, stage: str, key: str) -> Figure | None:
    """The plot, None where fewer than two values have a result."""
    pairs = along(data, stage, key)
    metric = data.quality(stage)
    known = [(value, arm, mean) for value, arm in pairs if (mean := arm.mean(metric)) is not None]
    if len({value for value, _, _ in known}) < 2:
        return None
    title = data.axes[key]
    numeric = all(_numeric(value) for value, _ in pairs)
    order = list(dict.fromkeys(value for value, _ in pairs))
    at = {value: float(value) if numeric else float(order.index(value)) for value in order}
    text = bits_per_byte if metric == "final_bits_per_byte" else perplexity
    best = min(known, key=lambda item: item[2])

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=50, right=22, title=METRICS[metric], below=title)
        if numeric and min(at.values()) > 0 and max(at.values()) / min(at.values()) > 20:
            axes.set_xscale("log")
        axes.plot([at[v] for v, _, _ in known], [mean for _, _, mean in known], color=BLUE, linewidth=1.5)
        dots = [(at[v], value) for v, arm, _ in known for value in arm.values(metric)]
        if len(dots) > MAX_DOTS:
            dots = [(at[v], mean) for v, _, mean in known]
        axes.plot(*zip(*dots, strict=True), "o", color=BLUE, markersize=6, alpha=0.55, markeredgewidth=0)
        for value, arm, mean in known:
            fill = PAPER if arm.baseline else BLUE
            axes.plot(at[value], mean, "o", markersize=8, color=fill, markeredgecolor=BLUE, markeredgewidth=2)
        axes.margins(x=0.08, y=0.22)
        floor, top = axes.get_ylim()
        lost = [(value, arm) for value, arm in pairs if arm.mean(metric) is None]
        for value, _ in lost:
            axes.plot(at[value], top, "x", color=RED, markersize=8, markeredgewidth=2, clip_on=False)
        axes.set_ylim(floor, top)
        _ticks(axes, at, numeric=numeric)
        wanted = [Label(at[best[0]], best[2], f"{text(best[2])} best", weight="bold")]
        wanted += [Label(at[v], m, f"{text(m)} baseline") for v, arm, m in known if arm.baseline and arm is not best[1]]
        wanted += [Label(at[v], m, text(m), MUTED) for v, arm, m in known if arm is not best[1] and not arm.baseline]
        wanted += [Label(at[v], top, arm.trials[0].status, RED) for v, arm in lost]
        joined = [(at[v], mean) for v, _, mean in known]
        place(axes, wanted, [*dots, *((at[v], top) for v, _ in lost)], joined)

    caption = f"{len(known)} of {len(pairs)} values have a result; the other axes are at the baseline's value (ring)."
    if any(len(arm.values(metric)) > 1 for _, arm, _ in known):
        caption += " Pale dots are seeds, full ones their mean."
    name = METRICS[metric].removeprefix("validation ")
    against = title if title[1:2].isupper() else f"{title[:1].lower()}{title[1:]}"
    described = f"{name[0].upper()}{name[1:]} against {against}"
    svg = draw(250, paint, describe=f"{described}, stage {stage}")
    return Figure(f"axis-{key}-{stage}", described, caption, svg, stage)


def _ticks(axes: Axes, at: Mapping[str, float], *, numeric: bool) -> None:
    """Ticks at the axis's own values while they are few; of many numbers a round scale, of many words some."""
    values = list(at)
    if len(values) > MAX_TICKS and numeric:
        axes.xaxis.set_major_locator(MaxNLocator(5) if axes.get_xscale() == "linear" else LogLocator(numticks=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    shown: list[str] = []
    edge = float("-inf")
    for value in values:
        # a text that would lie on the one before it is left out
        pixel = axes.transData.transform((at[value], axes.get_ylim()[0]))[0]
        label = short(value, 12)
        half = text_width(label) / 2
        fits = pixel - half > edge
        shown.append(label if fits else "")
        edge = pixel + half if fits else edge
    axes.xaxis.set_major_locator(FixedLocator([at[value] for value in values]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(shown, color=INK)


def _numeric(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
