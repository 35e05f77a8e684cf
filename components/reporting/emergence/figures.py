"""Routing over time: a heat map of specialisation for every layer, and all runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure as Canvas

from podium.components.reporting.emergence.runs import MixtureRun, figures_of
from podium.components.reporting.figures.style import BLUE, FAINT, RED, SERIES, Figure, draw, plane
from podium.trainer.routing_metrics import Routing

COLUMNS = 40
"""Times shown at most; of more records the ones nearest to evenly spaced steps."""
LEVELS = 8
"""Shades of a share from 0 to 1."""


def emergence_figures(runs: Sequence[MixtureRun]) -> list[Figure]:
    """All runs' specialisation and largest share over time, then each run's heat maps."""
    routed = [run for run in runs if run.routing]
    if not routed:
        return []
    found = [_over_time(routed, "specialisation"), _over_time(routed, "largest_share")]
    for run in routed:
        found += [_heat_map(run, index) for index in range(len(run.routing[0].layers))]
    return [figure for figure in found if figure is not None]


def _over_time(runs: Sequence[MixtureRun], what: str) -> Figure | None:
    lines = []
    for run in runs:
        points = [(routing.step, getattr(figures_of(routing), what)) for routing in run.routing]
        known = [(step, value) for step, value in points if value is not None]
        lines += [(run.label, known)] if known else []
    if not lines:
        return None
    limit = next((r.trial.config.stop.collapse for r in runs if r.trial.config and r.trial.config.stop.collapse), None)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, title="share of what there is to know" if what == "specialisation" else "share of tokens",
                     below="step", bottom=66)  # fmt: skip
        for number, (_, points) in enumerate(lines):
            axes.plot(*zip(*points, strict=True), color=SERIES[number % len(SERIES)], linewidth=1.6)
        if what == "largest_share" and limit is not None:
            axes.axhline(limit.share, color=RED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        place = 48.0
        for number, (label, _) in enumerate(lines):
            color = SERIES[number % len(SERIES)]
            canvas.text(place / 350, 8 / 240, label, color=color, fontsize=13, ha="left", va="baseline")
            place += 8 * len(label) + 16

    if what == "specialisation":
        title = "Specialisation over time"
        caption = "How much a token's expert tells of its domain, mean over layers: 0 nothing, 1 all there is."
    else:
        title = "Largest share of one expert over time"
        caption = "In whichever layer it is largest."
        caption += f" Dashed: {limit.share:.0%}, over which the collapse stop counts." if limit else ""
    name = "emergence-specialisation" if what == "specialisation" else "emergence-largest-share"
    return Figure(name, title, caption, draw(240, paint, describe=title))


def _heat_map(run: MixtureRun, layer: int) -> Figure:
    records = _thinned(run.routing)
    domains, experts = records[0].domains, len(records[0].assigned[layer][0])
    rows = len(domains) * experts
    # shares[row][column], the first domain's first expert on top
    shares = [
        [record.specialisation(layer)[domain][expert] for record in records]
        for domain in range(len(domains))
        for expert in range(experts)
    ]
    block = run.routing[0].layers[layer]
    title = f"{run.label}, block {block}: who takes which domain"

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=56, below="step", bottom=44, top=12)
        for level in range(1, LEVELS + 1):
            cells = [cell for row in range(rows) for cell in _runs_of(shares[row], level, rows - row - 1)]
            axes.add_collection(PolyCollection(cells, facecolors=BLUE, alpha=level / LEVELS, linewidths=0))
        axes.set_xlim(0, len(records))
        axes.set_ylim(0, rows)
        for number in range(1, len(domains)):
            axes.axhline(rows - number * experts, color=FAINT, linewidth=1.0)
        axes.grid(visible=False)
        middles = [rows - (number + 0.5) * experts for number in range(len(domains))]
        axes.set_yticks(middles, [domain[:6] for domain in domains])
        places = sorted({0, len(records) // 2, len(records) - 1})
        axes.set_xticks([place + 0.5 for place in places], [str(records[place].step) for place in places])

    caption = (
        f"Each row is an expert (0 on top), by domain; the darker, the larger its share of the domain's tokens, in "
        f"{LEVELS} shades up to all of them."
    )
    name = f"emergence-{run.stage}-block-{block}"
    return Figure(name, title, caption, draw(80 + 7 * rows, paint, describe=title))


def _thinned(routing: Sequence[Routing]) -> list[Routing]:
    if len(routing) <= COLUMNS:
        return list(routing)
    step = (len(routing) - 1) / (COLUMNS - 1)
    return [routing[round(index * step)] for index in range(COLUMNS)]


def _runs_of(shares: Sequence[float], level: int, low: int) -> list[list[tuple[float, float]]]:
    """Rectangles over neighbouring columns that have this shade; the lightest, no share to speak of, is not drawn."""
    found, begin = [], None
    for column, share in enumerate([*shares, -1.0]):
        if share >= 0 and round(share * LEVELS) == level:
            begin = column if begin is None else begin
        elif begin is not None:
            found.append([(begin, low), (column, low), (column, low + 1), (begin, low + 1)])
            begin = None
    return [[(float(x), float(y)) for x, y in corners] for corners in found]
