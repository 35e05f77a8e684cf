"""The stages as a funnel: how many variants came in and how many went on."""

from __future__ import annotations

from matplotlib.figure import Figure as Canvas

from podium.components.reporting.figures.data import PlotData
from podium.components.reporting.figures.style import BLUE, FAINT, MUTED, Figure, draw, plane

ROW = 56.0


def funnel_figure(data: PlotData) -> Figure | None:
    """The plot, None for a run without any trial."""
    stages = [(stage, data.arms(stage)) for stage in data.stages]
    if not stages:
        return None
    widest = max(len(arms) for _, arms in stages)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=4, right=4, top=4, bottom=8)
        axes.set_axis_off()
        axes.set_xlim(0, widest)
        axes.set_ylim(len(stages) - 0.35, -0.62)
        for place, (stage, arms) in enumerate(stages):
            last = place == len(stages) - 1
            # a stage may hand on a variant that a verdict made, so the next stage counts, not the marks of this one
            on = sum(arm.promoted for arm in arms) if last else len(stages[place + 1][1])
            trials = sum(len(arm.trials) for arm in arms)
            axes.barh(place, len(arms), height=0.34, color=FAINT, linewidth=0)
            axes.barh(place, min(on, len(arms)), height=0.34, color=BLUE, linewidth=0)
            axes.text(0, place - 0.38, stage, va="center", fontweight="bold")
            decided = not last or any(trial.decided for arm in arms for trial in arm.trials)
            told = f"{len(arms)} variants, {trials} trials" + (f" → {on}" if decided else "")
            axes.text(widest, place - 0.38, told, va="center", ha="right", color=MUTED)

    svg = draw(len(stages) * ROW + 12, paint, describe="Variants in and promoted, stage by stage")
    return Figure("funnel", "Stage funnel", "Grey: variants that took part. Blue: variants that went on.", svg)
