"""The parts that a study of mixtures of experts adds to a report: answers, the runs side by side, heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure as Canvas

from podium.components.reporting import table
from podium.components.reporting.figures.style import BLUE, FAINT, RED, SERIES, draw, plane
from podium.components.reporting.model import ReportData, TrialData
from podium.components.reporting.studies import StudyReport
from podium.components.reporting.table import (
    Block,
    Bullets,
    Column,
    Figure,
    Gallery,
    Headline,
    Line,
    Section,
    Table,
    number,
    text,
)
from podium.trainer.builtin.data.corpus import CorpusConfig
from podium.trainer.trial.result import Status
from podium.trainer.trial.routing_metrics import Routing


@dataclass(frozen=True)
class MixtureRun:
    """One trial of a stage: what it was, how it ended, and its routing over time (none of a dense run)."""

    stage: str
    trial: TrialData

    @property
    def routing(self) -> tuple[Routing, ...]:
        """In the order of steps."""
        return self.trial.routing

    @property
    def losses(self) -> dict[str, float]:
        """Domain → last validation loss in nats."""
        result = self.trial.result
        return (result.final_val_loss_by_domain if result else None) or {}

    @property
    def label(self) -> str:
        """The stage, with the seed where a reader needs it."""
        return self.stage

    def last(self) -> RoutingFigures | None:
        """Routing at the end; None where none is recorded."""
        return figures_of(self.routing[-1]) if self.routing else None


@dataclass(frozen=True)
class RoutingFigures:
    """One record in the figures that a table shows: means over layers, but for the largest share."""

    step: int
    specialisation: float | None
    """How much a token's expert tells of its domain: 0 nothing, 1 all there is."""
    load_entropy: float
    """Of the experts' shares, as a fraction of an even load's."""
    largest_share: float
    layer: int
    """The block of the largest share."""
    dropped: int


def figures_of(routing: Routing) -> RoutingFigures:
    """The figures of one record."""
    layers = range(len(routing.layers))
    known = [value for index in layers if (value := routing.information(index)) is not None]
    largest, layer = max((max(routing.shares(index)), routing.layers[index]) for index in layers)
    return RoutingFigures(
        step=routing.step,
        specialisation=sum(known) / len(known) if known else None,
        load_entropy=sum(routing.load_entropy(index) for index in layers) / len(layers),
        largest_share=largest,
        layer=layer,
        dropped=sum(sum(row) for row in routing.dropped),
    )


def mixture_runs(data: ReportData) -> list[MixtureRun]:
    """The first trial of every stage that has one with a result, in the stages' order."""
    found = []
    for stage in data.stages:
        done = [trial for trial in stage.trials if trial.result is not None]
        found += [MixtureRun(stage.name, done[0])] if done else []
    return found


# The study's question, answered in sentences.

SPECIALISED = 0.1
"""Of 1: from here on an expert says more of a token's domain than a glance at a heat map could miss."""


def answers(data: ReportData, runs: list[MixtureRun]) -> tuple[str, ...]:
    """What the runs say, one question a sentence or two."""
    routed = [run for run in runs if run.routing]
    told = [_corpus(data.study.data.corpus)]
    told += [_specialisation(run) for run in routed]
    told += [_against(routed)] if len(routed) > 1 else []
    told += [sentence for run in runs if (sentence := _collapse(run))]
    told += [sentence for sentence in (_losses(runs),) if sentence]
    return tuple(told)


def headline_of(data: ReportData, runs: list[MixtureRun]) -> str:
    """The study's question answered in a sentence by the run whose model is registered; empty while it has not run."""
    stage = data.study.champion.stage
    run = next((run for run in runs if run.routing and stage in (None, run.stage)), None)
    last = figures_of(run.routing[-1]) if run is not None else None
    if run is None or last is None or last.specialisation is None:
        return ""
    does = "specialise" if last.specialisation >= SPECIALISED else "hardly specialise"
    return f"In {run.label} experts {does} by domain: {last.specialisation:.0%} of what there is to know of it."


def _corpus(corpus: CorpusConfig) -> str:
    return f"Text: {corpus.description}."


def _specialisation(run: MixtureRun) -> str:
    first, last = figures_of(run.routing[0]), figures_of(run.routing[-1])
    if last.specialisation is None or first.specialisation is None:
        return f"{run.label}: the data has one domain, so specialisation can't be told."
    verdict = "its experts specialise by domain" if last.specialisation >= SPECIALISED else "hardly any specialisation"
    return (
        f"{run.label}: {verdict}. A token's expert tells {last.specialisation:.0%} of what there is to know of its "
        f"domain at step {last.step} (mean over layers; {first.specialisation:.0%} at step {first.step}), and the load "
        f"has {last.load_entropy:.0%} of an even load's entropy."
    )


def _against(runs: list[MixtureRun]) -> str:
    """The runs at the last step that all of them reached: at their own ends they have seen different amounts."""
    step = min(run.routing[-1].step for run in runs)
    parts = []
    for run in runs:
        at = [routing for routing in run.routing if routing.step <= step][-1]
        found = figures_of(at)
        told = "unknown" if found.specialisation is None else f"{found.specialisation:.0%}"
        parts.append(f"{run.label} specialisation {told}, largest share {found.largest_share:.0%}")
    return f"At equal steps (step {step}): {'; '.join(parts)}."


def _collapse(run: MixtureRun) -> str:
    result, config = run.trial.result, run.trial.config
    if result is None or config is None or config.stop.collapse is None:
        return ""
    if result.status is Status.COLLAPSED:
        return f"{run.label}: {result.reason}."
    rule = config.stop.collapse
    what = f"more than {rule.share:.0%} at {rule.checks} looks in a row"
    return f"{run.label}: no collapse in {result.steps} steps ({what})."


def _losses(runs: list[MixtureRun]) -> str:
    known = [(run, run.trial.result.final_val_loss) for run in runs if run.trial.result]
    parts = [f"{run.label} {table.loss(loss)}" for run, loss in known if loss is not None]
    return f"Last validation losses, after different numbers of steps: {', '.join(parts)}." if len(parts) > 1 else ""


# Figures of routing over time.

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
        for index, (_, points) in enumerate(lines):
            axes.plot(*zip(*points, strict=True), color=SERIES[index % len(SERIES)], linewidth=1.6)
        if what == "largest_share" and limit is not None:
            axes.axhline(limit.share, color=RED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        place = 48.0
        for index, (label, _) in enumerate(lines):
            color = SERIES[index % len(SERIES)]
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
        for index in range(1, len(domains)):
            axes.axhline(rows - index * experts, color=FAINT, linewidth=1.0)
        axes.grid(visible=False)
        middles = [rows - (index + 0.5) * experts for index in range(len(domains))]
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


class MoeEmergence(StudyReport):
    """Answers, the runs side by side, heat maps, and the routing of each run in results.csv."""

    has_export = False

    @cached_property
    def runs(self) -> list[MixtureRun]:
        """The runs with a result, in the stages' order."""
        return mixture_runs(self.data)

    @cached_property
    def own_figures(self) -> list[Figure]:
        """All runs over time, then each run's heat maps."""
        return emergence_figures(self.runs)

    def headline(self, head: Headline) -> Headline:
        """The common headline, with the answer as its sentence once all runs have ended."""
        answer = headline_of(self.data, self.runs)
        return replace(head, sentence=answer) if answer and head.badge == "compared" else head

    def figures(self, common: Sequence[Figure]) -> list[Figure]:
        """Own ones first."""
        return [*self.own_figures, *common]

    def cells(self) -> dict[str, dict[str, str]]:
        """Loss by domain and routing of each run."""
        return {run.trial.key.name: run_cells(run) for run in self.runs}

    def sections(self) -> list[Section]:
        """The answers, the runs side by side and the heat maps; none while no run has ended."""
        if not self.runs:
            return []
        side_by_side, maps = self.own_figures[:2], self.own_figures[2:]
        blocks: list[Block] = [Bullets(answers(self.data, self.runs)), runs_table(self.runs)]
        blocks += [Gallery(tuple(side_by_side))] if side_by_side else []
        lead = (
            "The runs side by side; nothing is ranked. Specialisation is the mutual information of expert and domain "
            "over the domain's entropy."
        )
        found = [Section("emergence", "Do experts emerge?", lead, tuple(blocks))]
        if maps:
            lead = "Each expert's share of a domain's tokens over time: what a specialist looks like is one dark row."
            found.append(Section("specialisation", "Specialisation by layer", lead, (Gallery(tuple(maps)),)))
        return found


def runs_table(runs: list[MixtureRun]) -> Table:
    """A line a run: loss by domain, load and specialisation at its end. Every figure is a cell of results.csv."""
    domains = list(dict.fromkeys(name for run in runs for name in run.losses))
    lines = []
    for run in runs:
        result = run.trial.result
        cells = run_cells(run)
        lines.append(
            Line(
                (
                    run.label,
                    str(result.steps) if result else "",
                    result.status.value.replace("_", " ") if result else "",
                    table.loss(result.final_val_loss) if result else "",
                    *(cells.get(f"val_loss_{name}", "") for name in domains),
                    cells.get("router_specialisation", ""),
                    cells.get("router_load_entropy", ""),
                    cells.get("router_largest_share", ""),
                    cells.get("router_dropped", ""),
                ),
                "lost" if result and result.status.value == "collapsed" else "",
            )
        )
    columns: tuple[Column, ...] = (
        text("run"),
        number("steps"),
        text("end"),
        number("loss", "validation loss, nats per token"),
        *(number(name, f"validation loss on {name}") for name in domains),
        number("specialisation", "mutual information of expert and domain over the domain's entropy, mean of layers"),
        number("load", "entropy of the experts' shares over an even load's, mean of layers"),
        number("largest share", "of one expert in any layer"),
        number("dropped", "assignments over capacity since the record before"),
    )
    note = "At each run's own end. A dense run has no routing."
    return Table("emergence-runs", "", columns, tuple(lines), note)


def run_cells(run: MixtureRun) -> dict[str, str]:
    """What results.csv has of a run beside every trial's columns."""
    cells = {f"val_loss_{name}": table.loss(loss) for name, loss in run.losses.items()}
    last = run.last()
    return cells | (_routing_cells(last) if last is not None else {})


def _routing_cells(last: RoutingFigures) -> dict[str, str]:
    return {
        "router_specialisation": "" if last.specialisation is None else f"{last.specialisation:.3f}",
        "router_load_entropy": f"{last.load_entropy:.3f}",
        "router_largest_share": f"{last.largest_share:.3f}",
        "router_dropped": str(last.dropped),
    }
