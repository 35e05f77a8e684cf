"""Plots of a study of times: how many trials have arrived by when, and which values the fastest ones have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure as Canvas

from podium.components.reporting.figures.style import FAINT, FONT, INK, MUTED, SERIES, Figure, draw, plane, short
from podium.components.reporting.model import ReportData
from podium.components.reporting.to_target.runs import TimedRun, level_name, target_of

MOST_LINES = 200


def target_figures(data: ReportData, runs: Sequence[TimedRun]) -> list[Figure]:
    """Every plot that has something to show."""
    found = [arrivals_figure(data, runs), parallel_figure(data, runs)]
    return [figure for figure in found if figure is not None]


def arrivals(runs: Sequence[TimedRun]) -> list[tuple[float, float]]:
    """Kaplan and Meier's estimate of the share that has arrived: (seconds, share) at which it rises."""
    steps, left, share = [], len(runs), 1.0
    for run in sorted(runs, key=lambda run: (run.seconds, not run.reached)):
        if run.reached:
            share *= (left - 1) / left
            steps.append((run.seconds, 1 - share))
        left -= 1
    return steps


def arrivals_figure(data: ReportData, runs: Sequence[TimedRun]) -> Figure | None:
    """The distribution of times to the target, a line a stage; None where nobody arrived."""
    stages = [stage for stage in data.stages if any(run.reached for run in runs if run.stage == stage.name)]
    if not stages:
        return None
    longest = max(run.seconds for run in runs)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=44, right=14, title="share of the trials at the target", below="seconds of training")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, longest * 1.03)
        for index, stage in enumerate(stages):
            own = [run for run in runs if run.stage == stage.name]
            points = [(0.0, 0.0), *arrivals(own)]
            last = max(run.seconds for run in own)
            xs, ys = [x for x, _ in points] + [last], [y for _, y in points] + [points[-1][1]]
            axes.step(xs, ys, where="post", color=SERIES[index % len(SERIES)], linewidth=1.8)
            missed = [run.seconds for run in own if not run.reached]
            heights = [max((y for x, y in points if x <= seconds), default=0.0) for seconds in missed]
            axes.plot(missed, heights, "|", color=SERIES[index % len(SERIES)], markersize=8)
            axes.text(last, ys[-1] - 0.03, stage.name, color=INK, fontsize=FONT, ha="right", va="top")

    told = "; ".join(
        f"{stage.name}: {sum(r.reached for r in runs if r.stage == stage.name)} of "
        f"{sum(r.stage == stage.name for r in runs)} reached {target_of(stage):g}"
        for stage in stages
    )
    caption = f"{told}. A tick is a trial that missed: it would have taken longer (Kaplan–Meier)."
    svg = draw(250, paint, describe="Share of trials at the target by seconds of training")
    return Figure("time-to-target", "Time to target", caption, svg)


def parallel_figure(data: ReportData, runs: Sequence[TimedRun]) -> Figure | None:
    """Parallel coordinates: an axis a parameter, its levels evenly spaced, and the time; None for fewer than 2 runs."""
    names = list(data.study.axes)
    varied = [place for place in range(len(names)) if len({repr(run.values[place]) for run in runs}) > 1]
    chosen = sorted(runs, key=lambda run: (not run.reached, run.seconds))[:MOST_LINES]
    if len(chosen) < 2 or not varied:
        return None
    levels = {
        place: sorted({run.values[place] for run in chosen}, key=lambda value: (str(type(value)), value))
        for place in varied
    }
    least, most = math.log(min(r.seconds for r in chosen)), math.log(max(r.seconds for r in chosen))
    shades = colormaps["viridis"]

    def height(place: int, run: TimedRun) -> float:
        known = levels[place]
        return known.index(run.values[place]) / (len(known) - 1) if len(known) > 1 else 0.5

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=22, right=46, top=56, bottom=16)
        axes.grid(visible=False)
        axes.set_axis_off()
        axes.set_xlim(0, len(varied))
        axes.set_ylim(-0.08, 1.08)
        for run in reversed(chosen):  # the fastest on top
            share = (math.log(run.seconds) - least) / (most - least) if most > least else 0.0
            ys = [*(height(place, run) for place in varied), 1 - share]
            colour = shades(0.9 * share) if run.reached else FAINT
            axes.plot(range(len(varied) + 1), ys, color=colour, linewidth=1.3, alpha=0.8)
        for x, place in enumerate(varied):
            axes.axvline(x, color=MUTED, linewidth=1)
            title = data.study.axes[names[place]].title or names[place]
            canvas_top = 1.1 if x % 2 else 1.2
            axes.text(x, canvas_top, short(title, 16), color=INK, fontsize=9, ha="center", va="bottom", clip_on=False)
            shown = levels[place] if len(levels[place]) <= 8 else [levels[place][0], levels[place][-1]]
            for value in shown:
                at = levels[place].index(value) / max(1, len(levels[place]) - 1)
                words = short(level_name(data.study, names[place], value), 9)
                axes.text(x + 0.04, at, words, color=MUTED, fontsize=8, ha="left", va="center", clip_on=False)
        axes.axvline(len(varied), color=MUTED, linewidth=1)
        axes.text(len(varied), 1.1, "time", color=INK, fontsize=9, ha="center", va="bottom", clip_on=False)
        for at, seconds in ((1.0, math.exp(least)), (0.0, math.exp(most))):
            axes.text(len(varied) + 0.06, at, f"{seconds:.3g} s", color=MUTED, fontsize=8, va="center", clip_on=False)

    left_out = f" The fastest {MOST_LINES} of {len(runs)} trials." if len(runs) > MOST_LINES else ""
    caption = f"A line a trial, dark is fast, grey missed the target; levels evenly spaced, time logarithmic.{left_out}"
    svg = draw(300, paint, describe="Parallel coordinates of all trials")
    return Figure("parallel-coordinates", "Which values the fastest have", caption, svg)
