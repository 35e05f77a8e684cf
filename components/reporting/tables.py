"""The tables of results: a ranking an axis, the arms of a stage, every trial. Figures of trials are cells of
results.csv, taken from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from podium.components.reporting import table
from podium.components.reporting.figures.data import FINISHED
from podium.components.reporting.model import PENDING, ReportData, StageData, TrialData
from podium.components.reporting.results_csv import Row, axis_keys
from podium.components.reporting.table import Column, Line, Mark, Table, number, prose, text
from podium.components.study.verdict import ArmSummary
from podium.trainer.trial.result import TrialResult

FOLD_FROM = 40
"""Tables with more rows are folded on the page."""


@dataclass(frozen=True)
class ArmFigures:
    """Means over the finished seeds of an arm, for a reader beside the verdict's metric."""

    n: int
    loss: float | None
    perplexity: float | None
    bits_per_byte: float | None

    def by(self, metric: str) -> float | None:
        """The figure that a metric ranks by; the loss stands in for the best loss."""
        return {"final_bits_per_byte": self.bits_per_byte, "final_val_perplexity": self.perplexity}.get(
            metric, self.loss
        )


def arm_figures(trials: Iterable[TrialData]) -> ArmFigures:
    """The means; None where no finished seed has the figure."""
    done = [trial.result for trial in trials if trial.result and trial.status in FINISHED]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return ArmFigures(
        n=len(done),
        loss=mean([result.final_val_loss for result in done]),
        perplexity=mean([result.final_val_perplexity for result in done]),
        bits_per_byte=mean([result.final_bits_per_byte for result in done]),
    )


def arms_of(stage: StageData) -> dict[str, list[TrialData]]:
    """Variant → its trials in this stage."""
    arms: dict[str, list[TrialData]] = {}
    for trial in stage.trials:
        arms.setdefault(trial.variant.name, []).append(trial)
    return arms


def axis_tables(data: ReportData) -> list[Table]:
    """For each axis the comparison of its values in the first stage: experiment, value, perplexity, loss, layers."""
    if not data.stages:
        return []
    stage = data.stages[0]
    arms = arms_of(stage)
    metric = stage.stage.promotion.metric
    by_bytes = metric == "final_bits_per_byte"
    keys = axis_keys(data.study)
    tables = []
    for name, axis in data.study.axes.items():
        rows = [row for row in data.experiments if row.axis == name]
        known = [(row, arm_figures(arms.get(row.variant, ())), _status(arms.get(row.variant, []))) for row in rows]
        order = [f.by(metric) for _, f, _ in known]
        best = min((value for value in order if value is not None), default=None)
        base = next((v for (row, _, _), v in zip(known, order, strict=True) if row.variant == data.baseline), None)
        lines = []
        for (row, figures, status), value in zip(known, order, strict=True):
            mark: Mark = "winner" if value is not None and value == best else ""
            mark = mark or ("baseline" if row.variant == data.baseline else "" if status in ("", *FINISHED) else "lost")
            result = next((t.result for t in arms.get(row.variant, ()) if t.result and t.result.n_layers), None)
            roles = ("baseline" if row.variant == data.baseline else "", "best" if mark == "winner" else "")
            cells = (
                row.name,
                table.axis_value(row.value),
                table.perplexity(figures.perplexity),
                table.loss(figures.loss),
                *((table.bits_per_byte(figures.bits_per_byte),) if by_bytes else ()),
                table.signed(value - base, table.decimals_of(metric))
                if value is not None and base is not None and value != base
                else "",
                _text(result.n_layers if result else None),
                _text(result.d_model if result else None),
                ", ".join(filter(None, (*roles, status))) or "completed",
            )
            lines.append(Line(cells, mark))
        title = axis.title or name
        heading = title[:1].upper() + title[1:]
        columns = (
            text("experiment"),
            number(title if len(title) < 20 else keys[name].replace("_", " ")),
            number("PPL", "validation perplexity"),
            number("loss", "validation loss, nats per token"),
            *((number("bits/byte", "bits per UTF-8 byte"),) if by_bytes else ()),
            number("gap", "difference to the baseline in the ranking's metric"),
            number("layers"),
            number("width", "d_model"),
            text("status"),
        )
        seeds = max((figures.n for _, figures, _ in known), default=0)
        note = "Means over seeds." if seeds > 1 else "One seed a value: a ranking, not a proof." if seeds else ""
        if by_bytes:
            note += " Ranked by bits per byte, since the values differ in their tokenizer."
        tables.append(Table(f"axis-{name}", heading, columns, tuple(lines), note.strip(), len(lines) > FOLD_FROM))
    return tables


def stage_table(data: ReportData, stage: StageData) -> Table:
    """The arms of a stage, best first, as the verdict ranks them; as the results stand while there is no verdict."""
    verdict = stage.verdict
    arms = arms_of(stage)
    metric = verdict.metric if verdict else stage.stage.promotion.metric
    decimals, by_perplexity = table.decimals_of(metric), metric.endswith("perplexity")
    on = {variant.name for variant in verdict.promoted} if verdict else set()
    tested = bool(verdict) and any(arm.p is not None for arm in verdict.ranking) if verdict else False
    ranking = verdict.ranking if verdict else _provisional(data, stage, arms)
    against = verdict.opponent if verdict else "the baseline"
    lines = []
    for arm in sorted(ranking, key=lambda arm: arm.rank if arm.rank is not None else len(ranking) + 1):
        figures = arm_figures(arms.get(arm.variant, ()))
        mark: Mark = "winner" if verdict and verdict.winner == arm.variant and arm.variant in on else ""
        mark = mark or ("baseline" if arm.variant == data.baseline else "lost" if arm.rank is None else "")
        fate = "goes on" if arm.variant in on else verdict.not_chosen.get(arm.variant, arm.why) if verdict else arm.why
        if stage is data.stages[-1] and arm.variant in on:
            fate = "winner"
        if arm.variant == data.baseline:
            fate = ", ".join(filter(None, ("baseline", fate)))
        cells = (
            arm.variant,
            "" if arm.rank is None else str(arm.rank),
            str(arm.n),
            table.of_metric(metric, arm.mean),
            table.of_metric(metric, arm.sd),
            table.loss(figures.loss) if by_perplexity else table.perplexity(figures.perplexity),
            table.signed(arm.difference, decimals),
            *((table.interval(arm.interval, decimals), table.p_value(arm.p)) if tested else ()),
            fate,
        )
        lines.append(Line(cells, mark))
    columns = (
        text("variant"),
        number("rank"),
        number("seeds"),
        number("mean PPL" if by_perplexity else "mean", f"mean of {metric} over seeds"),
        number("SD", "sample standard deviation over seeds"),
        number("loss", "mean validation loss") if by_perplexity else number("PPL", "mean validation perplexity"),
        number("gap", f"mean minus {against}; below 0 is better"),
        *((text("interval", "two-sided interval of the gap"), number("p", "one-sided")) if tested else ()),
        prose("outcome"),
    )
    return Table(f"arms-{stage.name}", "Variants", columns, tuple(lines), _test_words(stage), len(lines) > FOLD_FROM)


def trials_table(stage: StageData, rows: Iterable[Row]) -> Table:
    """Every seed of every variant, failures and exclusions included; the cells are those of results.csv."""
    columns: tuple[Column, ...] = (
        text("variant"),
        number("seed"),
        text("status"),
        number("loss", "final validation loss, nats per token"),
        number("PPL", "final validation perplexity"),
        number("bits/byte"),
        number("best loss", "lowest validation loss of the run"),
        number("tokens", "training tokens"),
        number("training s", "training clock: evaluation, compilation and checkpoints apart"),
        number("held s", "device-seconds held, lost attempts included"),
        number("tokens/s"),
        number("MB", "peak memory"),
        number("cost $", "US dollars, lost attempts included"),
        number("attempts"),
        prose("why it ended"),
    )
    fields = (
        "variant", "seed", "status", "final_val_loss", "final_val_perplexity", "final_bits_per_byte", "best_val_loss",
        "tokens", "training_seconds", "device_seconds", "tokens_per_second", "peak_memory_mb", "cost_usd", "attempts",
    )  # fmt: skip
    lines = []
    for row in rows:
        if row["stage"] != stage.name:
            continue
        lost = row["status"] not in (PENDING, *FINISHED)
        why = row.get("reason", "") if lost or row["status"] != "completed" else ""
        if row.get("reused_from"):
            why = f"taken from run {row['reused_from']}"
        cells = (*(row.get(field, "") for field in fields), why)
        lines.append(Line(cells, "lost" if lost else "baseline" if row.get("role") else ""))
    if not any(line.cells[-1] for line in lines):
        columns, lines = columns[:-1], [Line(line.cells[:-1], line.mark) for line in lines]
    note = "Each figure is a cell of results.csv."
    return Table(f"trials-{stage.name}", "Every trial", columns, tuple(lines), note, len(lines) > FOLD_FROM)


def broken_logs(data: ReportData) -> list[tuple[str, str]]:
    """(trial, last lines of its log) of the broken trials, the first twenty of them."""
    broken = [(t.key.name, "\n".join(t.result.log_tail)) for t in data.trials if t.result and t.result.log_tail]
    return broken[:20]


def _provisional(data: ReportData, stage: StageData, arms: dict[str, list[TrialData]]) -> list[ArmSummary]:
    """What the finished trials say so far, without any decision."""
    metric = stage.stage.promotion.metric
    found: list[tuple[float | None, ArmSummary]] = []
    for name, trials in arms.items():
        done = [t.result for t in trials if t.result and t.status in FINISHED]
        known = [value for result in done if (value := _metric(result, metric)) is not None]
        mean = statistics.fmean(known) if known else None
        missing = sum(trial.result is None for trial in trials)
        why = f"{missing} of {len(trials)} trials to come" if missing else "" if known else _status(trials)
        sd = statistics.stdev(known) if len(known) > 1 else None
        arm = ArmSummary(variant=name, rank=None, n=len(known), mean=mean, sd=sd, values={}, statuses={}, why=why)
        found.append((mean, arm))
    found.sort(key=lambda pair: pair[0] if pair[0] is not None else float("inf"))
    return [
        arm.model_copy(update={"rank": place if mean is not None else None})
        for place, (mean, arm) in enumerate(found, start=1)
    ]


def _metric(result: TrialResult, metric: str) -> float | None:
    value = getattr(result, metric)
    return value if isinstance(value, float) else None


def _test_words(stage: StageData) -> str:
    """The test of the verdict in a sentence, from whatever the policy computed."""
    if stage.verdict is None:
        return "No verdict yet: provisional figures of the trials that have ended."
    test = stage.verdict.test
    name = str(test.get("name", "none"))
    if name == "none":
        return str(test.get("why", "")) and f"No test: {test['why']}."
    parts = [f"{name[:1].upper()}{name[1:]}"]
    words = {"pooled_sd": "pooled SD", "degrees_of_freedom": "degrees of freedom", "df": "degrees of freedom"}
    words |= {"alpha": "α", "statistic": "statistic", "comparisons": "comparisons"}
    for key, word in words.items():
        value = test.get(key)
        if isinstance(value, int | float):
            parts.append(f"{word} {value:.4g}".replace("-", "−"))
    return ", ".join(parts) + "."


def _status(trials: list[TrialData]) -> str:
    """The statuses of an arm that are worth a word: all but completed."""
    if not trials:
        return "not run"
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    if len(trials) == 1:
        return "" if trials[0].status == "completed" else trials[0].status
    return ", ".join(f"{count} {status}" for status, count in counts.items() if status != "completed")


def _text(value: object) -> str:
    return "" if value is None else str(value)
