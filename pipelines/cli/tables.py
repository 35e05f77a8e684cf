"""Tables for a terminal: an axis's experiments, and a stage's ranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from podium.components.study.run import Run
    from podium.trainer.result import TrialResult


def axis_tables(run: Run, stage: str) -> Iterator[Table]:
    """A table per axis (experiment, value, perplexity, loss, layers) of the first stage; later stages have none.

    Only axes of which a value has been tried besides the baseline's are shown.
    """
    from rich.table import Table

    from podium.components.study.design import experiments

    if stage != run.stages[0]:
        return
    results: dict[str, list[TrialResult]] = {}
    for trial in run.trials(stage):
        found = run.result(trial.key)
        if found is not None:
            results.setdefault(trial.variant.name, []).append(found)
    rows = experiments(run.study)
    for name, axis in run.study.axes.items():
        mine = [row for row in rows if row.axis == name]
        if not any(row.variant in results for row in mine if row.variant != run.study.baseline.variant):
            continue
        table = Table(
            title=axis.title or name, title_justify="left", box=None, pad_edge=False, title_style="bold", min_width=60
        )
        for heading in ("experiment", "value", "perplexity", "loss", "layers", "status"):
            table.add_column(heading, justify="left" if heading in ("experiment", "status") else "right")
        for row in mine:
            ended = results.get(row.variant, [])
            perplexity = mean([result.final_val_perplexity for result in ended])
            loss = mean([result.final_val_loss for result in ended])
            layers = {str(result.n_layers) for result in ended if result.n_layers is not None}
            statuses = sorted({result.status.value for result in ended}) or ["no result"]
            table.add_row(
                row.name,
                str(row.value),
                figure(perplexity, 2),
                figure(loss, 4),
                ", ".join(sorted(layers)),
                ", ".join(statuses),
            )
        yield table


def mean(values: list[float | None]) -> float | None:
    """The mean, None where there is no value or one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def figure(value: float | None, digits: int) -> str:
    """A number, or a dash for what was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"
