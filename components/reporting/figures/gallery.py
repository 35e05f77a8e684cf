"""All the figures that the rows allow, in the order of a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from podium.components.reporting.figures.curves import curves_figure, gaps_figure
from podium.components.reporting.figures.data import METRICS, PlotAxis, PlotData, PlotStage
from podium.components.reporting.figures.seeds import forest_figure, seeds_figure
from podium.components.reporting.figures.style import (
    BLUE,
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    RED,
    Label,
    draw,
    place,
    plane,
    short,
    text_width,
)
from podium.components.reporting.model import Score
from podium.components.reporting.table import Figure, bits_per_byte, perplexity, usd
from podium.components.study.trials import RANKED
from podium.components.study.verdict import Arm

# Funnel: variants in and promoted, per stage.

ROW = 56.0


def funnel_figure(data: PlotData) -> Figure | None:
    """The plot, None for a run without any trial."""
    stages = [(stage, stage.arms(stage.metric)) for stage in data.stages]
    if not stages:
        return None
    widest = max(len(arms) for _, arms in stages)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=4, right=4, top=4, bottom=8)
        axes.set_axis_off()
        axes.set_xlim(0, widest)
        axes.set_ylim(len(stages) - 0.35, -0.62)
        for row, (stage, arms) in enumerate(stages):
            last = row == len(stages) - 1
            # a stage may hand on a variant that a verdict made, so the next stage counts, not the marks of this one
            on = sum(arm.name in stage.promoted for arm in arms) if last else len(stages[row + 1][1])
            axes.barh(row, len(arms), height=0.34, color=FAINT, linewidth=0)
            axes.barh(row, min(on, len(arms)), height=0.34, color=BLUE, linewidth=0)
            axes.text(0, row - 0.38, stage.name, va="center", fontweight="bold")
            decided = not last or stage.decided
            told = f"{len(arms)} variants, {len(stage.trials)} trials" + (f" → {on}" if decided else "")
            axes.text(widest, row - 0.38, told, va="center", ha="right", color=MUTED)

    svg = draw(len(stages) * ROW + 12, paint, describe="Variants in and promoted, stage by stage")
    return Figure("funnel", "Stage funnel", "Grey: variants that took part. Blue: variants that went on.", svg)


# Spending, with the plan and the limit.

MAX_STEPS = 200


def money_figure(data: PlotData) -> Figure | None:
    """The plot, None where nothing cost anything."""
    paid = data.spending or [t.result.cost_usd or 0.0 for t in data.trials if t.result]
    total = sum(paid)
    if total <= 0:
        return None
    sums = [0.0, *accumulate(paid)]
    lines = [(data.planned_usd, "planned", MUTED), (data.limit_usd, "limit", RED)]
    # a limit far above everything would press the spending flat: it is told in the caption instead
    drawn = [(value, name, color) for value, name, color in lines if value and value <= 4 * total]

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=58, right=14, title="spent so far", below="trials and evaluations paid for")
        every = -(-len(sums) // MAX_STEPS)
        places = [*range(0, len(sums), every), len(sums)]
        steps = [*sums[::every], sums[-1]]
        axes.step(places, steps, where="post", color=BLUE, linewidth=2)
        axes.fill_between(places, steps, step="post", color=BLUE, alpha=0.1, linewidth=0)
        top = max([total, *(value for value, _, _ in drawn)])
        axes.set_xlim(0, len(sums) - 0.5)
        axes.set_ylim(0, top * 1.16)
        heights: list[float] = []
        for value, name, color in sorted(drawn):
            axes.axhline(value, color=color, linewidth=1.3, linestyle=(0, (4, 3)))
            if all(abs(value - other) > 0.09 * top for other in heights):
                axes.text(0.02 * len(sums), value + 0.02 * top, f"{name} {usd(value)}", color=color, va="bottom")
                heights.append(value)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${value:g}"))
        axes.locator_params(nbins=5)
        axes.locator_params(axis="x", nbins=5, integer=True)

    told = [f"{name} {usd(value)}" for value, name, _ in lines if value]
    caption = f"{usd(total)} in all" + (f"; {', '.join(told)}." if told else ".")
    return Figure("money", "Spending", caption, draw(230, paint, describe="Money spent, accumulated"))


# Pareto frontier of compute and quality.


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


def pareto_figure(stage: PlotStage) -> Figure | None:
    """The plot, None for fewer than three arms with compute and quality."""
    metric = stage.quality
    spent: dict[str, list[float]] = {}
    for trial, flops in zip(stage.trials, stage.flops, strict=True):
        if flops and trial.status in RANKED:
            spent.setdefault(trial.variant.name, []).append(flops)
    points = [
        ParetoPoint(arm, statistics.fmean(spent[arm.name]), arm.mean)
        for arm in stage.arms(metric)
        if arm.n and arm.name in spent
    ]
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
        base = [p for p in points if p.arm.is_baseline]
        for point in base:
            axes.plot(point.flops, point.value, "o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
        wanted = [Label(p.flops, p.value, p.arm.name, BLUE, "bold") for p in edge]
        wanted += [Label(p.flops, p.value, p.arm.name) for p in base if p not in edge]
        wanted += [Label(p.flops, p.value, p.arm.name, MUTED) for p in dominated if not p.arm.is_baseline]
        axes.set_xlim(axes.get_xlim())
        axes.set_ylim(axes.get_ylim())
        place(axes, wanted, [(p.flops, p.value) for p in points])

    caption = (
        f"{len(edge)} of {len(points)} variants are on the frontier (blue); grey ones cost as much or more and are no "
        "better. The ring is the baseline. Means over seeds; 6 FLOP per matrix parameter and token, plus attention."
    )
    describe = f"Pareto frontier of compute and quality in stage {stage.name}"
    svg = draw(260, paint, describe=describe)
    return Figure(f"pareto-{stage.name}", "Compute against quality", caption, svg, stage.name)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


# Ranks of the same arms in two stages, with Spearman's correlation.

MIN_ARMS = 3


def shared_ranks(earlier: PlotStage, later: PlotStage) -> list[tuple[str, int, int]]:
    """(variant, rank in the earlier stage, rank in the later one) among the arms that both have values of."""
    first = [arm.name for arm in earlier.ranked()]
    second = [arm.name for arm in later.ranked()]
    both_first = [name for name in first if name in second]
    both_second = [name for name in second if name in first]
    return [(name, both_first.index(name) + 1, both_second.index(name) + 1) for name in both_first]


def spearman(pairs: list[tuple[int, int]]) -> float:
    """Spearman's rank correlation of ranks without ties."""
    n = len(pairs)
    return 1 - 6 * sum((a - b) ** 2 for a, b in pairs) / (n * (n * n - 1))


def ranks_figure(earlier: PlotStage, later: PlotStage) -> Figure | None:
    """The plot, None for fewer than three shared arms."""
    shared = shared_ranks(earlier, later)
    if len(shared) < MIN_ARMS:
        return None
    rho = spearman([(a, b) for _, a, b in shared])
    n = len(shared)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=36, right=20, title=f"rank in {later.name}", below=f"rank in {earlier.name}")
        axes.set_xlim(0.5, n + 0.5)
        axes.set_ylim(n + 0.5, 0.5)
        axes.plot([1, n], [1, n], color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.plot([a for _, a, _ in shared], [b for _, _, b in shared], "o", color=BLUE, markersize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        named = sorted(shared, key=lambda item: item[2])
        place(axes, [Label(a, b, name, INK) for name, a, b in named], [(a, b) for _, a, b in shared])

    told = f"{rho:.2f}".replace("-", "−")
    caption = f"Spearman's ρ = {told} over the {n} variants that both stages ran; 1 is best, on the line both agree."
    svg = draw(260, paint, describe=f"Ranks in {earlier.name} against ranks in {later.name}")
    title = f"Ranks, {earlier.name} against {later.name}"
    return Figure(f"ranks-{earlier.name}-{later.name}", title, caption, svg, later.name)


# SmallBench accuracy by task.

MAX_VARIANTS = 8
TASK_ROW = 22.0


def smallbench_figure(data: PlotData) -> Figure | None:
    """The plot, None where nothing was evaluated on SmallBench."""
    scored = list(data.smallbench.items())[:MAX_VARIANTS]
    tasks = list(dict.fromkeys(task for _, scores in scored for task in scores))
    baselines = {stage.baseline for stage in data.stages}
    if not scored:
        return None
    lines: list[tuple[str, str, bool, Score | None]] = []
    for task in tasks:
        lines.append((task.upper(), "", False, None))
        lines += [("", name, name in baselines, scores[task]) for name, scores in scored if task in scores]

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=124, right=52, top=4, bottom=46, below="accuracy, %")
        axes.set_ylim(len(lines) - 0.4, -0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x", color=GRID)
        left, right = -122 / 174, 1 + 50 / 174
        across = axes.get_yaxis_transform()
        for row, (task, variant, baseline, score) in enumerate(lines):
            if score is None:
                axes.text(left, row, task, transform=across, va="center", color=MUTED, fontweight="bold")
                continue
            accuracy, error = score[0] * 100, (score[1] or 0) * 100
            color = INK if baseline else BLUE
            if score[2] is not None:
                axes.plot(score[2] * 100, row, "|", color=FAINT, markersize=18, markeredgewidth=2)
            axes.plot([accuracy - error, accuracy + error], [row, row], color=color, linewidth=2)
            axes.plot(accuracy, row, "o", color=color, markersize=6)
            axes.text(left, row, short(variant, 15), transform=across, va="center", color=color)
            axes.text(right, row, f"{accuracy:.1f}", transform=across, va="center", ha="right", color=INK)
        axes.locator_params(axis="x", nbins=4)

    svg = draw(len(lines) * TASK_ROW + 60, paint, describe="SmallBench accuracy by task and variant")
    caption = "Lines are ± 1 standard error over the examples; the grey stroke is the share of the commonest label."
    if len(data.smallbench) > len(scored):
        caption += f" {len(scored)} of {len(data.smallbench)} evaluated variants."
    return Figure("smallbench", "SmallBench by task", caption, svg)


# Quality along one axis, the others at the baseline's values.

MAX_TICKS = 6
MAX_DOTS = 400


def along(data: PlotData, stage: PlotStage, axis: str) -> list[tuple[str, Arm]]:
    """(value, arm) of the arms that differ from the baseline in this axis alone, by value. Where no trial is the
    baseline's, the most common value of every axis stands for its."""
    found = [(arm, data.axis_values(stage.of(arm)[0])) for arm in stage.arms(stage.quality)]
    found = [(arm, values) for arm, values in found if axis in values]
    base = next((values for arm, values in found if arm.is_baseline), None)
    if base is None:
        given = {each.name: [values[each.name] for _, values in found if each.name in values] for each in data.axes}
        base = {name: statistics.mode(values) for name, values in given.items() if values}
    pairs = [
        (values[axis], arm) for arm, values in found if all(v == base.get(k) for k, v in values.items() if k != axis)
    ]
    if all(_numeric(value) for value, _ in pairs):
        return sorted(pairs, key=lambda pair: float(pair[0]))
    return pairs


def axis_figure(data: PlotData, stage: PlotStage, axis: PlotAxis) -> Figure | None:
    """The plot, None where fewer than two values have a result."""
    pairs = along(data, stage, axis.name)
    metric = stage.quality
    known = [(value, arm, arm.mean) for value, arm in pairs if arm.n]
    if len({value for value, _, _ in known}) < 2:
        return None
    title = axis.title
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
        dots = [(at[v], value) for v, arm, _ in known for value in arm.values.values()]
        if len(dots) > MAX_DOTS:
            dots = [(at[v], mean) for v, _, mean in known]
        axes.plot(*zip(*dots, strict=True), "o", color=BLUE, markersize=6, alpha=0.55, markeredgewidth=0)
        for value, arm, mean in known:
            fill = PAPER if arm.is_baseline else BLUE
            axes.plot(at[value], mean, "o", markersize=8, color=fill, markeredgecolor=BLUE, markeredgewidth=2)
        axes.margins(x=0.08, y=0.22)
        floor, top = axes.get_ylim()
        lost = [(value, arm) for value, arm in pairs if not arm.n]
        for value, _ in lost:
            axes.plot(at[value], top, "x", color=RED, markersize=8, markeredgewidth=2, clip_on=False)
        axes.set_ylim(floor, top)
        _ticks(axes, at, numeric=numeric)
        wanted = [Label(at[best[0]], best[2], f"{text(best[2])} best", weight="bold")]
        wanted += [
            Label(at[v], m, f"{text(m)} baseline") for v, arm, m in known if arm.is_baseline and arm is not best[1]
        ]
        wanted += [Label(at[v], m, text(m), MUTED) for v, arm, m in known if arm is not best[1] and not arm.is_baseline]
        wanted += [Label(at[v], top, stage.of(arm)[0].status, RED) for v, arm in lost]
        joined = [(at[v], mean) for v, _, mean in known]
        place(axes, wanted, [*dots, *((at[v], top) for v, _ in lost)], joined)

    caption = f"{len(known)} of {len(pairs)} values have a result; the other axes are at the baseline's value (ring)."
    if any(arm.n > 1 for _, arm, _ in known):
        caption += " Pale dots are seeds, full ones their mean."
    name = METRICS[metric].removeprefix("validation ")
    against = title if title[1:2].isupper() else f"{title[:1].lower()}{title[1:]}"
    described = f"{name[0].upper()}{name[1:]} against {against}"
    svg = draw(250, paint, describe=f"{described}, stage {stage.name}")
    return Figure(f"axis-{axis.key}-{stage.name}", described, caption, svg, stage.name)


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


def all_figures(data: PlotData) -> list[Figure]:
    """Every plot that has something to show."""
    found: list[Figure | None] = [funnel_figure(data)]
    # later stages keep too few values of an axis for a line
    found += [axis_figure(data, stage, axis) for stage in data.stages[:1] for axis in data.axes]
    for stage in data.stages:
        found += [forest_figure(stage), seeds_figure(stage)]
        found += [curves_figure(stage), gaps_figure(stage), pareto_figure(stage)]
    found += [ranks_figure(earlier, later) for earlier, later in pairwise(data.stages)]
    found += [smallbench_figure(data), money_figure(data)]
    return [figure for figure in found if figure is not None]
