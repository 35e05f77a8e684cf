"""SmallBench by task: accuracy of every evaluated variant with its standard error."""

from __future__ import annotations

from matplotlib.figure import Figure as Canvas

from podium.components.reporting.figures.data import PlotData
from podium.components.reporting.figures.style import BLUE, FAINT, GRID, INK, MUTED, Figure, draw, plane, short

MAX_VARIANTS = 8
_Score = tuple[float, float | None, float | None]
ROW = 22.0


def smallbench_figure(data: PlotData) -> Figure | None:
    """The plot, None where nothing was evaluated on SmallBench."""
    trials = {trial.variant: trial for trial in data.trials if trial.smallbench}
    scored = list(trials.values())[:MAX_VARIANTS]
    tasks = list(dict.fromkeys(task for trial in scored for task in trial.smallbench))
    if not scored:
        return None
    lines: list[tuple[str, str, bool, _Score | None]] = []
    for task in tasks:
        lines.append((task.upper(), "", False, None))
        lines += [("", t.variant, t.baseline, t.smallbench[task]) for t in scored if task in t.smallbench]

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=124, right=52, top=4, bottom=46, below="accuracy, %")
        axes.set_ylim(len(lines) - 0.4, -0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x", color=GRID)
        left, right = -122 / 174, 1 + 50 / 174
        across = axes.get_yaxis_transform()
        for place, (task, variant, baseline, score) in enumerate(lines):
            if score is None:
                axes.text(left, place, task, transform=across, va="center", color=MUTED, fontweight="bold")
                continue
            accuracy, error = score[0] * 100, (score[1] or 0) * 100
            color = INK if baseline else BLUE
            if score[2] is not None:
                axes.plot(score[2] * 100, place, "|", color=FAINT, markersize=18, markeredgewidth=2)
            axes.plot([accuracy - error, accuracy + error], [place, place], color=color, linewidth=2)
            axes.plot(accuracy, place, "o", color=color, markersize=6)
            axes.text(left, place, short(variant, 15), transform=across, va="center", color=color)
            axes.text(right, place, f"{accuracy:.1f}", transform=across, va="center", ha="right", color=INK)
        axes.locator_params(axis="x", nbins=4)

    svg = draw(len(lines) * ROW + 60, paint, describe="SmallBench accuracy by task and variant")
    caption = "Lines are ± 1 standard error over the examples; the grey stroke is the share of the commonest label."
    if len(trials) > len(scored):
        caption += f" {len(scored)} of {len(trials)} evaluated variants."
    return Figure("smallbench", "SmallBench by task", caption, svg)
