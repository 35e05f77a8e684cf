"""The parts that a study of mixtures of experts adds to a report: answers, the runs side by side, heat maps."""

from __future__ import annotations

from dataclasses import replace

from podium.components.reporting import numbers
from podium.components.reporting.document import Block, Bullets, Gallery, Section
from podium.components.reporting.emergence.answers import answers, headline_of
from podium.components.reporting.emergence.figures import emergence_figures
from podium.components.reporting.emergence.runs import MixtureRun, RoutingFigures, mixture_runs
from podium.components.reporting.figures.style import Figure
from podium.components.reporting.headline import Headline
from podium.components.reporting.model import ReportData
from podium.components.reporting.results_csv import Row
from podium.components.reporting.table import Column, Line, Table, number, text

LAYOUT = "moe-emergence"


class EmergenceReport:
    """What is added, from the run's data alone."""

    def __init__(self, data: ReportData) -> None:
        self._data = data
        self._runs = mixture_runs(data)
        self.figures: list[Figure] = emergence_figures(self._runs)

    def headline(self, head: Headline) -> Headline:
        """The report's headline, with the answer as its sentence once all runs have ended."""
        answer = headline_of(self._data, self._runs)
        return replace(head, sentence=answer) if answer and head.badge == "compared" else head

    def sections(self) -> list[Section]:
        """The answers, the runs side by side and the heat maps; none while no run has ended."""
        if not self._runs:
            return []
        side_by_side, maps = self.figures[:2], self.figures[2:]
        blocks: list[Block] = [Bullets(answers(self._data, self._runs)), runs_table(self._runs)]
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
                    numbers.loss(result.final_val_loss) if result else "",
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


def run_cells(run: MixtureRun) -> Row:
    """What results.csv has of a run beside every trial's columns."""
    cells = {f"val_loss_{name}": numbers.loss(loss) for name, loss in run.losses.items()}
    last = run.last()
    return cells | (_routing_cells(last) if last is not None else {})


def _routing_cells(last: RoutingFigures) -> Row:
    return {
        "router_specialisation": "" if last.specialisation is None else f"{last.specialisation:.3f}",
        "router_load_entropy": f"{last.load_entropy:.3f}",
        "router_largest_share": f"{last.largest_share:.3f}",
        "router_dropped": str(last.dropped),
    }


def add_cells(data: ReportData, rows: list[Row]) -> None:
    """Add each run's cells to its row."""
    by_trial = {row["trial"]: row for row in rows}
    for run in mixture_runs(data):
        by_trial[run.trial.key.name].update(run_cells(run))
