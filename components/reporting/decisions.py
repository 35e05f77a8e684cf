"""What was decided: the stages in a line each, the gate, the ledger and the model that came out."""

from __future__ import annotations

import datetime
from typing import Any

from podium.components.reporting import numbers
from podium.components.reporting.figures.data import FINISHED
from podium.components.reporting.model import PENDING, ReportData
from podium.components.reporting.table import Line, Table, number, prose, text
from podium.components.reporting.tables import FOLD_FROM

MAX_LEDGER = 400
ROUTINE = ("trial_ended", "trial_restarted", "reuse", "report", "run_started")
"""Kinds that are told in numbers where they are many: they are no decisions."""


def stages_table(data: ReportData) -> Table:
    """Each stage in a line: who came, how their trials ended, what was decided."""
    lines = []
    for stage in data.stages:
        statuses = [trial.status for trial in stage.trials]
        lost = {name: statuses.count(name) for name in dict.fromkeys(statuses) if name not in (PENDING, *FINISHED)}
        verdict = stage.verdict
        cells = (
            stage.name,
            "" if stage.variants is None else str(len(stage.variants)),
            str(len(statuses)),
            str(sum(status in FINISHED for status in statuses)),
            ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in lost.items()) or "none",
            verdict.decision if verdict else "to come",
            ", ".join(variant.name for variant in verdict.promoted[:8]) if verdict else "",
        )
        lines.append(Line(cells))
    columns = (
        text("stage"), number("variants"), number("trials"), number("finished"), text("not ranked"), text("decision"),
        prose("goes on"),
    )  # fmt: skip
    return Table("stages", "", columns, tuple(lines))


def gate_table(data: ReportData) -> Table:
    """What the shakedown checked before anything was paid for."""
    checks = (data.shakedown or {}).get("checks") or []
    lines = []
    for check in checks:
        needed = check.get("required", True)
        result = "passed" if check.get("passed") else "failed" if needed else "failed, not required"
        cells = (str(check.get("name", "")), result, str(check.get("detail", "")))
        lines.append(Line(cells, "lost" if result == "failed" else ""))
    return Table("gate", "Shakedown gate", (text("check"), text("result"), prose("detail")), tuple(lines), fold=True)


def champion_table(data: ReportData) -> Table:
    """The registered model: where it is, what it is called, and its own figure with every digit."""
    record = data.registration or {}
    fields = ("variant", "alias", "claim", "metric", "value", "loss", "seed", "model", "version", "uri", "weights")
    rows = [(name, numbers.exact(value) if isinstance(value, float) else str(value))
            for name in fields if (value := record.get(name)) is not None]  # fmt: skip
    return Table("champion", "Registered model", (text("what"), prose("value")), tuple(Line(row) for row in rows))


def ledger_table(data: ReportData) -> Table:
    """Every decision in order with what it rests on; routine entries one by one only where they are few."""
    routine = [entry for entry in data.ledger if entry.kind in ROUTINE]
    told = list(data.ledger)
    if len(routine) > FOLD_FROM:
        told = [entry for entry in data.ledger if entry.kind not in ROUTINE]
    lines = [
        Line(
            (
                str(entry.n),
                _moment(entry.time),
                entry.kind.replace("_", " "),
                entry.key,
                _entry_words(entry.kind, entry.data),
            )
        )
        for entry in told[:MAX_LEDGER]
    ]
    left = len(data.ledger) - len(lines)
    note = f"{left} more entries (ended and restarted trials and the like) lie in the run's ledger." if left else ""
    columns = (number("n"), text("time, UTC"), text("kind"), text("of"), prose("what"))
    return Table("entries", "", columns, tuple(lines), note, len(lines) > FOLD_FROM)


def counts_sentence(data: ReportData) -> str:
    """`18 trials: 16 completed, 1 killed, 1 broken.`"""
    counts: dict[str, int] = {}
    for trial in data.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    return f"{len(data.trials)} trials: {told}." if told else "No trial has begun."


def _entry_words(kind: str, content: dict[str, Any]) -> str:
    """An entry's content in words. Of trials only words and whole numbers: their figures stand in the trials' tables,
    as results.csv has them."""
    of_trial = kind in ("trial_ended", "trial_restarted", "broken", "reuse", "evaluation")
    parts = [str(content["reason"])] if content.get("reason") else []
    for key, value in content.items():
        if key in ("reason", "log_tail", "tail", "results", "inputs", "checks") or value in (None, "", [], {}):
            continue
        if isinstance(value, float) and of_trial:
            continue
        parts.append(f"{key.replace('_', ' ')}: {_value_words(value)}")
    return "; ".join(parts)


def _value_words(value: Any) -> str:
    if isinstance(value, dict):
        told = ", ".join(f"{key} ({_value_words(item)})" for key, item in list(value.items())[:8])
        return told + (f" and {len(value) - 8} more" if len(value) > 8 else "")
    if isinstance(value, list | tuple):
        told = ", ".join(_value_words(item) for item in value[:8])
        return told + (f" and {len(value) - 8} more" if len(value) > 8 else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _moment(time: float | None) -> str:
    return "" if time is None else datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
