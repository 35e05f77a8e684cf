"""The runs of an emergence study as the report compares them."""

from __future__ import annotations

from dataclasses import dataclass

from podium.components.reporting.model import ReportData, TrialData
from podium.trainer.routing_metrics import Routing


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
