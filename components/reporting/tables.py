"""Tables of results: a ranking per axis, the arms of a stage, every trial, and the finalists' evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from podium.components.reporting import table
from podium.components.reporting.model import (
    PENDING,
    EvaluationData,
    ReportData,
    Score,
    StageData,
    TrialData,
    arms_of,
    means_of,
    smallbench_scores,
)
from podium.components.reporting.results_csv import Row, axis_keys
from podium.components.reporting.table import Column, Line, Mark, Table, number, prose, text
from podium.components.study.trials import RANKED
from podium.components.study.verdict import ArmSummary

LOSS, PERPLEXITY, BITS = "final_val_loss", "final_val_perplexity", "final_bits_per_byte"
FOLD_FROM = 40
"""Tables with more rows are folded on the page."""


def axis_tables(data: ReportData) -> list[Table]:
    """For each axis the comparison of its values in the first stage: experiment, value, perplexity, loss, layers."""
    if not data.stages:
        return []
    stage = data.stages[0]
    metric = stage.stage.promotion.metric
    by_bytes = metric == BITS
    means = {name: means_of(stage.trials, name) for name in (LOSS, PERPLEXITY, BITS)}
    # the final loss stands in for the best loss
    ranking = means.get(metric, means[LOSS])
    keys = axis_keys(data.study)
    tables = []
    for name, axis in data.study.axes.items():
        rows = [row for row in data.experiments if row.axis == name]
        order = [ranking.get(row.variant) for row in rows]
        best = min((value for value in order if value is not None), default=None)
        base = next((v for row, v in zip(rows, order, strict=True) if row.variant == data.baseline), None)
        lines, seeds = [], 0
        for row, value in zip(rows, order, strict=True):
            trials = stage.trials_of(row.variant)
            status = _status(trials)
            seeds = max(seeds, sum(trial.status in RANKED for trial in trials))
            is_base = row.variant == data.baseline
            mark: Mark = "winner" if value is not None and value == best else ""
            mark = mark or ("baseline" if is_base else "" if status in ("", *RANKED) else "lost")
            result = next((trial.result for trial in trials if trial.result and trial.result.n_layers), None)
            roles = ("baseline" if is_base else "", "best" if mark == "winner" else "")
            gap = None if value is None or base is None or value == base else value - base
            cells = (
                row.name,
                table.axis_value(row.value),
                table.perplexity(means[PERPLEXITY].get(row.variant)),
                table.loss(means[LOSS].get(row.variant)),
                *((table.bits_per_byte(means[BITS].get(row.variant)),) if by_bytes else ()),
                table.signed(gap, table.decimals_of(metric)),
                table.plain(result.n_layers if result else None),
                table.plain(result.d_model if result else None),
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
        note = "Means over seeds." if seeds > 1 else "One seed a value: a ranking, not a proof." if seeds else ""
        if by_bytes:
            note += " Ranked by bits per byte, since the values differ in their tokenizer."
        tables.append(Table(f"axis-{name}", heading, columns, tuple(lines), note.strip(), len(lines) > FOLD_FROM))
    return tables


def stage_table(data: ReportData, stage: StageData) -> Table:
    """The arms of a stage, best first, as the verdict ranks them; as the results stand while there is no verdict."""
    verdict = stage.verdict
    metric = verdict.metric if verdict else stage.stage.promotion.metric
    decimals, by_perplexity = table.decimals_of(metric), metric.endswith("perplexity")
    on = {variant.name for variant in verdict.promoted} if verdict else set()
    tested = verdict is not None and any(arm.p is not None for arm in verdict.ranking)
    ranking = verdict.ranking if verdict else _provisional(stage)
    other = means_of(stage.trials, LOSS if by_perplexity else PERPLEXITY)
    against = verdict.opponent if verdict else "the baseline"
    lines = []
    for arm in sorted(ranking, key=lambda arm: arm.rank if arm.rank is not None else len(ranking) + 1):
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
            (table.loss if by_perplexity else table.perplexity)(other.get(arm.variant)),
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
        lost = row["status"] not in (PENDING, *RANKED)
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


def _provisional(stage: StageData) -> list[ArmSummary]:
    """What the finished trials say so far, without any decision."""
    arms = arms_of(stage.trials, stage.stage.promotion.metric)
    found = []
    for place, arm in enumerate(sorted(arms.values(), key=lambda arm: arm.mean if arm.n else math.inf), start=1):
        missing = sum(status == PENDING for status in arm.statuses.values())
        why = f"{missing} of {len(arm.statuses)} trials to come" if missing else ""
        found.append(
            ArmSummary(
                variant=arm.name,
                rank=place if arm.n else None,
                n=arm.n,
                mean=arm.mean if arm.n else None,
                sd=arm.sd if arm.n else None,
                values={},
                statuses={},
                why=why or ("" if arm.n else _status(stage.trials_of(arm.name))),
            )
        )
    return found


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


# The finalists' evaluations, a column per variant.

MAX_VARIANTS = 8
UNMEASURED = "unmeasured"
"""Where metrics.json says why a field is null."""
NOT_MEASURED = "not measured"


def evaluation_tables(data: ReportData) -> list[Table]:
    """SmallBench, then every field of metrics.json in groups; fields of the last group are folded away."""
    shown = data.evaluations[:MAX_VARIANTS]
    fields = list(
        dict.fromkeys(f for e in shown for f in e.metrics if f != UNMEASURED and not f.startswith("smallbench_"))
    )
    tables = []
    for name, title, belongs in _GROUPS:
        chosen = [field for field in fields if belongs(field)]
        fields = [field for field in fields if field not in chosen]
        lines = [Line((label(field), *(_cell(field, e.metrics) for e in shown))) for field in chosen]
        tables.append(Table(f"evaluation-{name}", title, _columns("field", shown), tuple(lines), _why(shown, chosen)))
    tables.insert(len(tables) - 1, _smallbench_table(shown))
    last = tables[-1]
    tables[-1] = Table(last.name, last.title, last.columns, last.lines, last.note, fold=True)
    return [each for each in tables if each]


def _smallbench_table(shown: Sequence[EvaluationData]) -> Table:
    scores = {evaluation.variant: smallbench_scores(evaluation.metrics) for evaluation in shown}
    tasks = list(dict.fromkeys(task for found in scores.values() for task in found))
    majority = {task: next((s[task][2] for s in scores.values() if task in s), None) for task in tasks}
    lines = [
        Line((task.upper(), *(_score(scores[e.variant].get(task)) for e in shown), _percent(majority[task])))
        for task in tasks
    ]
    columns = (*_columns("task", shown), number("commonest label"))
    note = (
        "Accuracy in per cent ± one standard error over the examples; a model that knows nothing gets the last column."
    )
    if not tasks:
        reasons = {
            e.metrics.get(UNMEASURED, {}).get(field)
            for e in shown
            for field in e.metrics
            if field.startswith("smallbench_")
        }
        told = "; ".join(sorted(str(reason) for reason in reasons if reason))
        lines = [Line(("all tasks", *(NOT_MEASURED for _ in shown), ""))] if told else []
        note = f"Not measured: {told}."
    return Table("smallbench", "SmallBench", columns, tuple(lines), note)


def label(field: str) -> str:
    """`latency_128_p95_ms` as `latency 128 p95, ms`."""
    for ending, unit in _UNITS.items():
        if field.endswith(ending):
            return f"{field.removesuffix(ending).replace('_', ' ')}, {unit}"
    return field.replace("_", " ")


def _cell(field: str, metrics: Mapping[str, Any]) -> str:
    return table.figure(field, metrics.get(field)) or NOT_MEASURED


def _why(shown: Sequence[EvaluationData], fields: Sequence[str]) -> str:
    """`Not measured: peak memory mb (no CUDA device).`, one reason once."""
    reasons: dict[str, dict[str, None]] = {}
    for evaluation in shown:
        for field, reason in evaluation.metrics.get(UNMEASURED, {}).items():
            if field in fields:
                reasons.setdefault(str(reason), {})[label(field)] = None
    told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not measured: {told}." if told else ""


def _score(score: Score | None) -> str:
    if score is None:
        return NOT_MEASURED
    accuracy, error, _ = score
    return _percent(accuracy) + (f" ± {100 * error:.1f}" if error is not None else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _columns(first: str, shown: Sequence[EvaluationData]) -> tuple[Column, ...]:
    return (text(first), *(number(evaluation.variant) for evaluation in shown))


_MINOR = ("evaluation_seconds", "_mean_", "_min_", "_batch_")
"""Fields that results.csv and the last group have, and the table of costs leaves out."""
_UNITS = {"_ms": "ms", "_mb": "MB", "_tokens_per_second": "tokens/s", "_seconds": "s"}
_GROUPS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("quality", "Quality", lambda field: table.is_quality(field) and not field.startswith("training_")),
    (
        "cost",
        "Latency, throughput and memory",
        lambda field: table.is_cost(field) and not any(word in field for word in _MINOR),
    ),
    ("other", "Everything else that was recorded", lambda field: True),
)
