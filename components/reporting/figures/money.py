"""Where the money went: spending as it accumulated, beside the plan and the limit."""

from __future__ import annotations

from itertools import accumulate

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from podium.components.reporting.figures.data import PlotData
from podium.components.reporting.figures.style import BLUE, MUTED, RED, Figure, draw, plane
from podium.components.reporting.numbers import usd

MAX_STEPS = 200


def money_figure(data: PlotData) -> Figure | None:
    """The plot, None where nothing cost anything."""
    paid = [amount for _, amount in data.spending] or [trial.cost or 0.0 for trial in data.trials]
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
