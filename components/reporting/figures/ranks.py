"""Did the cheap stage tell the truth? Ranks of the same arms in two stages, with Spearman's correlation."""

from __future__ import annotations

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from podium.components.reporting.figures.data import PlotData
from podium.components.reporting.figures.labels import Label, place
from podium.components.reporting.figures.style import BLUE, FAINT, INK, Figure, draw, plane

MIN_ARMS = 3


def shared_ranks(data: PlotData, earlier: str, later: str) -> list[tuple[str, int, int]]:
    """(variant, rank in the earlier stage, rank in the later one) among the arms that both have values of."""
    first = [arm.variant for arm in data.ranked(earlier)]
    second = [arm.variant for arm in data.ranked(later)]
    both_first = [name for name in first if name in second]
    both_second = [name for name in second if name in first]
    return [(name, both_first.index(name) + 1, both_second.index(name) + 1) for name in both_first]


def spearman(pairs: list[tuple[int, int]]) -> float:
    """Spearman's rank correlation of ranks without ties."""
    n = len(pairs)
    return 1 - 6 * sum((a - b) ** 2 for a, b in pairs) / (n * (n * n - 1))


def ranks_figure(data: PlotData, earlier: str, later: str) -> Figure | None:
    """The plot, None for fewer than three shared arms."""
    shared = shared_ranks(data, earlier, later)
    if len(shared) < MIN_ARMS:
        return None
    rho = spearman([(a, b) for _, a, b in shared])
    n = len(shared)

    def paint(canvas: Canvas) -> None:
        axes = plane(canvas, left=36, right=20, title=f"rank in {later}", below=f"rank in {earlier}")
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
    svg = draw(260, paint, describe=f"Ranks in {earlier} against ranks in {later}")
    return Figure(f"ranks-{earlier}-{later}", f"Ranks, {earlier} against {later}", caption, svg, later)
