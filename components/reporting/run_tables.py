"""Tables of the run around its results: what was registered, decided and paid, on what data and machines it ran."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from podium.components.reporting import table
from podium.components.reporting.model import PENDING, ReportData, StageData
from podium.components.reporting.table import Line, Table, number, prose, text
from podium.components.reporting.tables import FOLD_FROM
from podium.components.study.trials import RANKED, stage_seeds
from podium.trainer.trial.section import format_count
from podium.trainer.trial.stopping import KillRule

MAX_LEDGER = 400
ROUTINE = ("trial_ended", "trial_restarted", "reuse", "report", "run_started")
"""Kinds that are told in numbers where they are many: they are no decisions."""


def stages_table(data: ReportData) -> Table:
    """Each stage in a line: who came, how their trials ended, what was decided."""
    lines = []
    for stage in data.stages:
        statuses = [trial.status for trial in stage.trials]
        lost = {name: statuses.count(name) for name in dict.fromkeys(statuses) if name not in (PENDING, *RANKED)}
        verdict = stage.verdict
        cells = (
            stage.name,
            "" if stage.variants is None else str(len(stage.variants)),
            str(len(statuses)),
            str(sum(status in RANKED for status in statuses)),
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
    rows = [(name, table.exact(value) if isinstance(value, float) else str(value))
            for name in fields if (value := record.get(name)) is not None]  # fmt: skip
    return Table("champion", "Registered model", (text("what"), prose("value")), tuple(Line(row) for row in rows))


def ledger_table(data: ReportData) -> Table:
    """Every decision in order with what it rests on; routine entries one by one only where they are few."""
    routine = [entry for entry in data.ledger if entry.kind in ROUTINE]
    told = list(data.ledger)
    if len(routine) > FOLD_FROM:
        told = [entry for entry in data.ledger if entry.kind not in ROUTINE]
    lines = []
    for entry in told[:MAX_LEDGER]:
        kind = entry.kind.replace("_", " ")
        lines.append(Line((str(entry.n), _moment(entry.time), kind, entry.key, _entry_words(entry.kind, entry.data))))
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


# Registration, cost, data and versions.


def registration_table(data: ReportData) -> Table:
    """What was fixed before the first trial, a row a stage."""
    lines = []
    for stage in data.stages:
        declared, promotion = stage.stage, stage.stage.promotion
        budget = declared.budget
        length = (
            f"{format_count(budget.tokens)} tokens" if budget.tokens else f"{format_count(budget.steps or 0)} steps"
        )
        alpha = getattr(promotion, "alpha", None)
        cells = (
            stage.name,
            declared.purpose,
            length,
            _seeds(stage_seeds(data.study, stage.name)),
            promotion.policy,
            promotion.metric,
            "" if alpha is None else f"{alpha:g}",
            str(declared.min_seeds),
            str(declared.max_broken),
            _kill_words(declared.stop.kill),
        )
        lines.append(Line(cells))
    columns = (
        text("stage"), prose("purpose"), text("budget"), text("seeds"), text("policy"), text("metric"), number("α"),
        number("min seeds"), number("max broken"), prose("kill rule"),
    )  # fmt: skip
    return Table("stages-registered", "", columns, tuple(lines))


def variants_table(data: ReportData) -> Table:
    """What each variant changes and why, where the study says it; empty where it describes none."""
    declared = data.study.variants
    if not any(variant.description or variant.details for variant in declared.values()):
        return Table("variants", "", (), ())
    lines = []
    for name, variant in declared.items():
        changes = ", ".join(f"{field} = {value}" for field, value in variant.overrides.items())
        cells = (name, variant.modification, variant.description, variant.details, changes)
        lines.append(Line(cells, "baseline" if name == data.baseline else ""))
    columns = (text("variant"), text("modification"), prose("description"), prose("details"), prose("changes"))
    return Table("variants", "Variants", columns, tuple(lines))


def identity_table(data: ReportData) -> Table:
    """Which study, which run: the hash that fixes the plan, and what amended it."""
    amendments = [entry for entry in data.ledger if entry.kind == "amendment"]
    told = "; ".join(str(entry.data.get("reason") or entry.key) for entry in amendments)
    rows = [
        ("study", data.study.name),
        ("profile", data.study.profile),
        ("run", data.run_id),
        ("study hash", data.study_hash),
        ("baseline", data.baseline),
        ("design", f"{data.study.design}, {len(data.study.axes)} axes"),
        ("amendments", told or "none"),
    ]
    return Table("identity", "", (text("what"), prose("value")), tuple(Line(row) for row in rows))


def money_table(data: ReportData) -> Table:
    """Planned and actual money by stage, with attempts that were lost, beside the naive plan."""
    planned = {str(stage["name"]): stage for stage in (data.plan or {}).get("stages", ())}
    lines = []
    for stage in data.stages:
        plan = planned.get(stage.name, {})
        results = [t.result for t in stage.trials if t.result and not t.reused_from]
        lost = sum(result.attempts - 1 for result in results)
        spent = sum(result.cost_usd or 0.0 for result in results)
        held = sum(result.device_seconds or 0.0 for result in results)
        cells = (
            stage.name,
            table.plain(plan.get("trials")),
            f"{len(results)}",
            table.usd(_float(plan.get("usd"))),
            table.usd(spent) if results else "",
            f"{held / 3600:.2f}" if results else "",
            str(lost),
        )
        lines.append(Line(cells))
    for what, kind in (("shakedown", "gate"), ("evaluation", "evaluation")):
        costs = [_float(entry.data.get("cost_usd")) for entry in data.ledger if entry.kind == kind]
        known = [cost for cost in costs if cost is not None]
        if known:
            lines.append(Line((what, "", str(len(known)), "", table.usd(sum(known)), "", "")))
    plan = data.plan or {}
    usd = table.usd(_float(plan.get("usd")))
    lines.append(Line(("all", table.plain(plan.get("trials")), "", usd, table.usd(data.spent_usd), "", ""), "total"))
    columns = (
        text("stage"), number("planned trials"), number("run"), number("planned"), number("spent"),
        number("device-hours"), number("lost attempts"),
    )  # fmt: skip
    return Table("dollars", "", columns, tuple(lines), _saving(data))


def models_table(data: ReportData) -> Table:
    """The solver's exact counts and dimensions of every variant that ran."""
    lines, seen = [], set()
    for trial in data.trials:
        result = trial.result
        if trial.variant.name in seen or result is None or result.parameters is None:
            continue
        seen.add(trial.variant.name)
        counts = result.parameters
        share = (counts.embedding + counts.output) / counts.total
        cells = (
            trial.variant.name,
            *(table.plain(value) for value in (result.d_model, result.n_layers, result.n_heads, result.d_ff)),
            table.count(counts.total),
            f"{100 * share:.2f} %",
            *(
                table.count(value)
                for value in (counts.embedding, counts.attention, counts.feed_forward, counts.norm, counts.output)
            ),
        )
        lines.append(Line(cells, "baseline" if trial.variant.name == data.baseline else ""))
    columns = (
        text("variant"), number("d_model"), number("layers"), number("heads"), number("d_ff"), number("parameters"),
        number("embedding share"), number("embedding"), number("attention"), number("feed-forward"), number("norm"),
        number("output"),
    )  # fmt: skip
    note = "Exact counts of trainable parameters; output is 0 where it is tied to the embedding."
    return Table("dimensions", "Models", columns, tuple(lines), note, len(lines) > FOLD_FROM)


def data_table(data: ReportData) -> Table:
    """The datasets and how often each stage read the training split."""
    lines = []
    for dataset in data.datasets:
        splits = dataset.manifest.get("splits", {})
        sizes = "; ".join(f"{name} {table.count(split.get('tokens'))}" for name, split in splits.items())
        cells = (
            dataset.fingerprint,
            _corpus(dataset.manifest.get("corpus", "")),
            table.count(dataset.manifest.get("vocab_size")),
            sizes,
            _passes(data.stages, set(dataset.variants)),
        )
        lines.append(Line(cells))
    columns = (
        text("fingerprint"),
        prose("corpus"),
        number("vocabulary"),
        prose("tokens by split"),
        prose("passes over the training split"),
    )
    return Table("datasets", "Data", columns, tuple(lines))


def versions_table(data: ReportData) -> Table:
    """What the trials ran on: every distinct value."""
    found: dict[str, dict[str, None]] = {}
    for trial in data.trials:
        versions = trial.result.versions if trial.result else None
        for name, value in versions.model_dump().items() if versions else ():
            found.setdefault(name, {}).update({str(value): None} if value is not None else {})
    rows = [(name.replace("_", " "), ", ".join(values)) for name, values in found.items() if values]
    rows += [("trainer digest", data.trainer_digest)] if data.trainer_digest else []
    rows += (
        [("data fingerprint", ", ".join(dataset.fingerprint for dataset in data.datasets[:4]))] if data.datasets else []
    )
    return Table("versions", "", (text("what"), prose("value")), tuple(Line(row) for row in rows))


def _saving(data: ReportData) -> str:
    plan = data.plan or {}
    naive, worst = _float(plan.get("usd_naive")), _float(plan.get("usd_worst"))
    parts = []
    if worst is not None:
        parts.append(f"Worst case {table.usd(worst)}.")
    if naive is not None:
        parts.append(f"The naive plan, every variant through every stage, costs {table.usd(naive)}.")
        if data.spent_usd is not None and 0 < data.spent_usd < naive:
            parts.append(f"Saved so far: {table.usd(naive - data.spent_usd)} ({1 - data.spent_usd / naive:.0%}).")
    limit = data.study.budget.usd
    parts.append(f"Limit {table.usd(limit)}." if limit is not None else "No limit was declared.")
    return " ".join(parts)


def _passes(stages: Iterable[StageData], variants: set[str]) -> str:
    told = []
    for stage in stages:
        known = [
            t.result.passes
            for t in stage.trials
            if t.result and t.result.passes is not None and t.variant.name in variants
        ]
        if known:
            told.append(f"{stage.name} {max(known):.2f}")
    return "; ".join(told)


def _kill_words(rule: KillRule | None) -> str:
    if rule is None:
        return "none"
    criteria = f" {'or' if rule.join == 'any' else 'and'} ".join(
        f"{criterion.metric} {criterion.limit:g} {'times' if criterion.metric == 'gradient_norm' else 'worse'}"
        for criterion in rule.criteria
    )
    span, start = format_count(rule.span_tokens), format_count(rule.min_tokens)
    return f"{criteria} than the baseline over {span} tokens, from {start} on"


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _corpus(corpus: Any) -> str:
    if isinstance(corpus, dict):
        return ", ".join(f"{key} {value}" for key, value in corpus.items() if value is not None)
    return str(corpus)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
