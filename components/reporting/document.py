"""The report's order and content: sections of prose, tables, figures and texts; page and summary render the same."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import stdtrit

from podium.components.reporting import table
from podium.components.reporting.figures.data import FINISHED
from podium.components.reporting.figures.seeds import pooled_variance
from podium.components.reporting.figures.style import Figure
from podium.components.reporting.model import PENDING, ReportData, StageData
from podium.components.reporting.results_csv import Row
from podium.components.reporting.table import Line, Table, evaluation_tables, number, prose, text
from podium.components.reporting.tables import (
    FOLD_FROM,
    arm_figures,
    arms_of,
    axis_tables,
    broken_logs,
    stage_table,
    trials_table,
)
from podium.components.study.load import dump_study
from podium.components.study.trials import stage_seeds
from podium.components.verdicts.verdict import ArmSummary, Verdict
from podium.trainer.trial.stopping import KillRule
from podium.trainer.trial.units import format_count

# What was decided: the stages in a line each, the gate, the ledger and the model that came out.

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
    rows = [(name, table.exact(value) if isinstance(value, float) else str(value))
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


# The tables around the results: what was registered beforehand, what it cost, on what data and machine it ran.


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
    lines = [
        Line(
            (
                name,
                variant.modification,
                variant.description,
                variant.details,
                ", ".join(f"{field} = {value}" for field, value in variant.overrides.items()),
            ),
            "baseline" if name == data.baseline else "",
        )
        for name, variant in declared.items()
    ]
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
            _text(plan.get("trials")),
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
    lines.append(
        Line(
            (
                "all",
                _text(plan.get("trials")),
                "",
                table.usd(_float(plan.get("usd"))),
                table.usd(data.spent_usd),
                "",
                "",
            ),
            "total",
        )
    )
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
            *(_text(value) for value in (result.d_model, result.n_layers, result.n_heads, result.d_ff)),
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


def _text(value: object) -> str:
    return "" if value is None else str(value)


MAX_STUDY_TEXT = 60_000
POWER = 0.8
DEFAULT_ALPHA = 0.05


@dataclass(frozen=True)
class Gallery:
    """Figures side by side."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Code:
    """Text as it is: a command, a log, the study."""

    title: str
    text: str
    fold: bool = False


@dataclass(frozen=True)
class Bullets:
    """Sentences."""

    items: tuple[str, ...]


Block = Table | Gallery | Code | Bullets


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def sections(
    data: ReportData, rows: Sequence[Row], figures: Sequence[Figure], further: Sequence[Section] = ()
) -> list[Section]:
    """Every section that has something to say, in the order of a report; `further` ones follow the overview."""
    found = [
        Section(
            "registered",
            "Registered beforehand",
            "Metric, level, seeds and stages are fixed by the study's hash before the first trial.",
            (registration_table(data), variants_table(data), identity_table(data)),
        ),
        Section(
            "overview",
            "Stages",
            counts_sentence(data),
            (stages_table(data), _named(figures, "funnel"), champion_table(data)),
        ),
        *further,
        *(_stage(data, stage, rows, figures) for stage in data.stages if stage.trials),
        _evaluation(data, figures),
        Section(
            "money",
            "Money",
            "Prices are the study's; spent counts lost attempts too.",
            (money_table(data), _named(figures, "money")),
        ),
        Section(
            "ledger",
            "Ledger",
            "Every decision of the run, in order; nothing is ever changed or removed.",
            (ledger_table(data), gate_table(data)),
        ),
        Section("models", "Models and data", "", (models_table(data), data_table(data))),
        Section("reproduce", "Reproduction", "", tuple(_reproduction(data))),
        Section("limits", "Limitations", "", (Bullets(tuple(limitations(data))),)),
    ]
    return [section for section in (_filled(section) for section in found) if section.blocks]


def limitations(data: ReportData) -> list[str]:
    """What the result does not say: the study's confounds, and what seeds, failures and noise leave open."""
    told = list(data.study.confounds)
    for stage in data.stages:
        sentence = power_sentence(stage)
        if sentence:
            told.append(sentence)
        elif stage.verdict and max((arm.n for arm in stage.verdict.ranking), default=0) == 1:
            name = stage.name.capitalize()
            told.append(f"{name} has one seed a variant: it ranks, and the best of several looks better than it is.")
        lost = [t for t in stage.trials if t.result and t.status not in FINISHED]
        if lost:
            names = sorted({f"{t.variant.name} ({t.status.replace('_', ' ')})" for t in lost})
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            told.append(f"Not ranked in {stage.name}: {', '.join(names[:8])}{more}. They are in its tables.")
        told += [f"{stage.name.capitalize()}: {note}." for note in (stage.verdict.notes if stage.verdict else ())]
    devices = {
        t.result.versions.device for t in data.trials if t.result and t.result.versions and t.result.versions.device
    }
    if len(devices) > 1:
        told.append(
            f"Trials ran on {len(devices)} device types ({', '.join(sorted(devices))}): compare losses, not times."
        )
    if data.evaluations:
        told.append("SmallBench differences within their standard errors say nothing at this model size.")
    return told


def power_sentence(stage: StageData, power: float = POWER) -> str:
    """The lead that a stage's test would have found: normal errors, pooled variance, two arms, one-sided.

    Empty where no arm has two seeds.
    """
    metric = stage.stage.promotion.metric
    values = [
        [v for t in trials if t.result and t.status in FINISHED and isinstance(v := getattr(t.result, metric), float)]
        for trials in arms_of(stage).values()
    ]
    variance, freedom = pooled_variance([arm for arm in values if arm])
    if not freedom or not variance:
        return ""
    alpha = getattr(stage.stage.promotion, "alpha", DEFAULT_ALPHA)
    if alpha is None:
        return ""  # the policy selects and tests nothing
    n = max(len(arm) for arm in values)
    lead = (float(stdtrit(freedom, 1 - alpha)) + float(stdtrit(freedom, power))) * math.sqrt(2 * variance / n)
    sd = table.of_metric(metric, math.sqrt(variance))
    return (
        f"Power of {stage.name}: with {n} seeds a variant and a pooled SD of {sd}, a true lead of "
        f"{table.of_metric(metric, lead)} would be found in {power:.0%} of repetitions at α = {alpha:g}; "
        "smaller ones may be missed."
    )


def _stage(data: ReportData, stage: StageData, rows: Sequence[Row], figures: Sequence[Figure]) -> Section:
    verdict = stage.verdict
    lead = f"{stage.stage.purpose[:1].upper()}{stage.stage.purpose[1:]}." if stage.stage.purpose else ""
    if verdict:
        lead = f"{lead} Verdict: {verdict.reason.rstrip('.')}.".strip()
    axes = axis_tables(data) if stage is data.stages[0] else []
    logs = [
        Code(f"Last lines of {name}", text, fold=True)
        for name, text in broken_logs(data)
        if name.startswith(f"{stage.name}/")
    ]
    pictures = Gallery(tuple(figure for figure in figures if figure.stage == stage.name))
    blocks: tuple[Block, ...] = (*axes, stage_table(data, stage), pictures, trials_table(stage, rows), *logs)
    return Section(f"stage-{stage.name}", stage.name.capitalize(), lead, blocks)


def _evaluation(data: ReportData, figures: Sequence[Figure]) -> Section:
    lead = "The model of each finalist's first seed, measured with the device to itself."
    blocks: list[Block] = []
    for measured in evaluation_tables(data):
        blocks += [measured, _named(figures, "smallbench")] if measured.name == "smallbench" else [measured]
    return Section("evaluation", "Evaluation of the finalists", lead, tuple(blocks))


def _named(figures: Sequence[Figure], name: str) -> Gallery:
    return Gallery(tuple(figure for figure in figures if figure.name == name))


def _reproduction(data: ReportData) -> list[Block]:
    study = data.study
    corpus = study.data.corpus
    given = f" --data {corpus.path}" if corpus.source in ("files", "s3") and corpus.path else ""
    profile = "" if study.profile == "full" else f" --profile {study.profile}"
    blocks: list[Block] = [
        Code("The same again", f"podium run {study.name}{profile}{given} --store runs"),
        versions_table(data),
    ]
    text = dump_study(study)
    if len(text) <= MAX_STUDY_TEXT:
        blocks.append(Code("The study, resolved: save it as study.yaml and `podium run study.yaml`", text, fold=True))
    return blocks


def _filled(section: Section) -> Section:
    kept = tuple(
        block
        for block in section.blocks
        if not ((isinstance(block, Table) and not block.lines) or (isinstance(block, Gallery) and not block.figures))
        and not (isinstance(block, Bullets) and not block.items)
    )
    return Section(section.name, section.title, section.lead, kept)


# The verdict in a sentence or two, worded so that a reader who stops there knows what was found and how surely.

Tone = Literal["proven", "candidate", "stopped", "open"]

UNITS = {
    "final_val_loss": ("validation loss", "nats per token"),
    "best_val_loss": ("best validation loss", "nats per token"),
    "final_val_perplexity": ("validation perplexity", ""),
    "final_bits_per_byte": ("bits per byte", ""),
}


@dataclass(frozen=True)
class Headline:
    """What stands at the top."""

    tone: Tone
    badge: str
    sentence: str
    """The verdict."""
    detail: str
    """The numbers it rests on."""
    facts: tuple[tuple[str, str], ...] = ()
    """(what, figure) beside it."""


def headline(data: ReportData) -> Headline:
    """The run's standing in words, whatever state it is in."""
    gate = data.shakedown
    if gate is not None and not gate.get("passed", True):
        reason = gate.get("reason") or "see the ledger for the check that failed"
        return Headline(
            "stopped",
            "gate failed",
            "The shakedown gate failed: no stage was trained.",
            _full(str(reason)),
            _money(data),
        )
    if not data.decided:
        done = sum(trial.result is not None for trial in data.trials)
        sentence = "No verdict yet."
        detail = f"{done} of {len(data.trials)} trials of the first stage have ended."
        return Headline("open", "in progress", sentence, detail, _money(data))
    stage = data.decided[-1]
    verdict = stage.verdict
    assert verdict is not None
    if verdict.decision == "stop":
        return Headline(
            "stopped",
            "stopped",
            f"The study stopped at {stage.name}: nothing goes on.",
            _full(verdict.reason),
            _money(data),
        )
    if verdict.decision == "await":
        sentence = f"{stage.name.capitalize()} is decided and waits for a person's approval."
        return Headline("open", "awaiting approval", sentence, _full(verdict.reason), _money(data))
    if stage is not data.stages[-1]:
        return _midway(data, stage, verdict)
    return _final(data, stage, verdict)


def _midway(data: ReportData, stage: StageData, verdict: Verdict) -> Headline:
    following = data.stages[[s.name for s in data.stages].index(stage.name) + 1]
    names = [variant.name for variant in verdict.promoted]
    sentence = f"{_list(names)} {'goes' if len(names) == 1 else 'go'} on from {stage.name} to {following.name}."
    done = sum(trial.result is not None for trial in following.trials)
    detail = f"{following.name.capitalize()} has {done} of {len(following.trials)} trials; nothing is proven yet."
    return Headline("open", "in progress", sentence, detail, _money(data))


def _final(data: ReportData, stage: StageData, verdict: Verdict) -> Headline:
    winner = verdict.winner or (verdict.promoted[0].name if verdict.promoted else "")
    arm = next((arm for arm in verdict.ranking if arm.variant == winner), None)
    base = next((arm for arm in verdict.ranking if arm.variant == data.baseline), None)
    alpha = verdict.test.get("alpha", getattr(stage.stage.promotion, "alpha", None))
    facts = (*_effect_facts(verdict, arm), *_money(data))
    detail = _numbers(data, stage, verdict, arm, base)
    if verdict.policy in ("always", "if_affordable"):
        return _compared(data)
    if not winner:
        return Headline(
            "open", "concluded", f"{stage.name.capitalize()} ended without a winner.", _full(verdict.reason), facts
        )
    if verdict.policy == "fastest_to_target":
        return _race(data, verdict, winner, arm)
    if winner == data.baseline:
        return Headline("candidate", "nothing won", "The baseline stands: no variant beat it.", detail, facts)
    if verdict.proven:
        level = f" at α\u00a0=\u00a0{alpha:g}" if isinstance(alpha, float) else ""
        did = f"reaches {verdict.opponent}" if "target" in verdict.test else f"beats {verdict.opponent}"
        return Headline("proven", "proven", f"{winner} {did}, proven{level}.", detail, facts)
    if verdict.claim == "exploratory":
        sentence = f"{winner} has the best mean; the claim is exploratory, not proven."
        return Headline("candidate", "exploratory", sentence, detail, facts)
    sentence = f"{winner} has the best mean and is a candidate: a lead over {verdict.opponent} is not proven."
    return Headline("candidate", "candidate", sentence, detail, facts)


def _compared(data: ReportData) -> Headline:
    """A study that ranks nothing ends by standing side by side."""
    told = [f"{trial.key.name} {trial.status.replace('_', ' ')}" for trial in data.trials[:8] if trial.result]
    registered = f" Registered: {data.registration['weights']}." if data.registration else ""
    sentence = "Every run has ended; nothing is ranked, the report compares."
    return Headline("candidate", "compared", sentence, f"{', '.join(told)}.{registered}", _money(data))


def _race(data: ReportData, verdict: Verdict, winner: str, arm: ArmSummary | None) -> Headline:
    target = verdict.test.get("target_loss")
    to = "the target" if target is None else f"a validation loss under {target:g}"
    words = "exploratory" if verdict.claim == "exploratory" else "candidate"
    detail = "" if arm is None or arm.mean is None else f"{arm.mean:.4g} s of training, {arm.n} of its seeds counted. "
    detail += _full(verdict.reason)
    if data.registration and data.registration.get("variant") == winner:
        detail += f" Registered as {data.registration.get('uri')}."
    return Headline("candidate", words, f"{winner} is the fastest to {to}.", detail, _money(data))


def _numbers(
    data: ReportData, stage: StageData, verdict: Verdict, arm: ArmSummary | None, base: ArmSummary | None
) -> str:
    """Means, effect, interval, p, seeds and perplexities of winner and baseline; what is not known is left out."""
    if arm is None or arm.mean is None:
        return _full(verdict.reason)
    name, unit = UNITS.get(verdict.metric, (verdict.metric, ""))
    decimals = table.decimals_of(verdict.metric)
    parts = [f"{name[:1].upper()}{name[1:]} {table.of_metric(verdict.metric, arm.mean)}"]
    if base is not None and base.mean is not None and base is not arm:
        parts[0] += f" against the baseline's {table.of_metric(verdict.metric, base.mean)}"
        gap = arm.mean - base.mean
        size = f"{table.of_metric(verdict.metric, abs(gap))} {unit}".strip()
        told = f"{size} {'better' if gap < 0 else 'worse'}"
        level = verdict.test.get("alpha")
        if arm.interval is not None:
            width = f"{100 * (1 - 2 * level):.0f}\u00a0% " if isinstance(level, float) else ""
            told += f" ({width}interval {table.interval(arm.interval, decimals)})"
        parts.append(told)
    if arm.p is not None:
        p = table.p_value(arm.p)
        sign = "" if p.startswith("<") else "=\u00a0"
        parts.append(f"one-sided p\u00a0{sign}{p}")
    seeds = (
        f"{arm.n} seed{'s' if arm.n != 1 else ''} each"
        if base and base is not arm and base.n == arm.n
        else f"{arm.n} seeds"
    )
    parts.append(seeds)
    arms = arms_of(stage)
    ours = arm_figures(arms.get(arm.variant, ())).perplexity
    theirs = arm_figures(arms.get(data.baseline, ())).perplexity
    sentence = ", ".join(parts) + "."
    if verdict.metric == "final_val_loss" and ours is not None and theirs is not None and base is not arm:
        sentence += f" Perplexity {table.perplexity(ours)} against {table.perplexity(theirs)}."
    if data.registration and data.registration.get("variant") == arm.variant:
        sentence += f" Registered as {data.registration.get('uri')}."
    doubt = next((note for note in verdict.notes if note.startswith("not proven")), "")
    return f"{sentence} {_full(doubt)}".strip()


def _effect_facts(verdict: Verdict, arm: ArmSummary | None) -> list[tuple[str, str]]:
    if arm is None or arm.difference is None:
        return []
    facts = [(f"gap to {verdict.opponent}", table.signed(arm.difference, table.decimals_of(verdict.metric)))]
    if arm.p is not None:
        facts.append(("p, one-sided", table.p_value(arm.p)))
    facts.append(("seeds", str(arm.n)))
    return facts


def _money(data: ReportData) -> tuple[tuple[str, str], ...]:
    if data.spent_usd is None:
        return ()
    facts = [("spent", table.usd(data.spent_usd))]
    naive = data.plan.get("usd_naive") if data.plan else None
    if isinstance(naive, int | float) and naive > 0:
        facts.append(("naive plan", table.usd(float(naive))))
    return tuple(facts)


def _list(names: list[str]) -> str:
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _full(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence and f"{sentence[:1].upper()}{sentence[1:]}{'' if sentence.endswith(('.', '!', '?')) else '.'}"
