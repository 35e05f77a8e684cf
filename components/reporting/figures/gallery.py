"""All the figures that the rows allow, in the order of a report."""

from __future__ import annotations

from itertools import pairwise

from podium.components.reporting.figures.axis import axis_figure
from podium.components.reporting.figures.curves import curves_figure, gaps_figure
from podium.components.reporting.figures.data import PlotData
from podium.components.reporting.figures.funnel import funnel_figure
from podium.components.reporting.figures.money import money_figure
from podium.components.reporting.figures.pareto import pareto_figure
from podium.components.reporting.figures.ranks import ranks_figure
from podium.components.reporting.figures.seeds import forest_figure, seeds_figure
from podium.components.reporting.figures.smallbench import smallbench_figure
from podium.components.reporting.figures.style import Figure


def all_figures(data: PlotData) -> list[Figure]:
    """Every plot that has something to show."""
    found: list[Figure | None] = [funnel_figure(data)]
    for index, stage in enumerate(data.stages):
        if index == 0:
            # later stages keep too few values of an axis for a line
            found += [axis_figure(data, stage, key) for key in data.axes]
        found += [forest_figure(data, stage), seeds_figure(data, stage)]
        found += [curves_figure(data, stage), gaps_figure(data, stage), pareto_figure(data, stage)]
    found += [ranks_figure(data, earlier, later) for earlier, later in pairwise(data.stages)]
    found += [smallbench_figure(data), money_figure(data)]
    return [figure for figure in found if figure is not None]
