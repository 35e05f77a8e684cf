"""The report's order and content: sections of prose, tables, figures and texts; page and summary render the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from podium.components.reporting import numbers
from podium.components.reporting.decisions import (
    champion_table,
    counts_sentence,
    gate_table,
    ledger_table,
    stages_table,
)
from podium.components.reporting.evaluation_tables import evaluation_tables
from podium.components.reporting.facts import (
    data_table,
    identity_table,
    models_table,
    money_table,
    registration_table,
    variants_table,
    versions_table,
)
from podium.components.reporting.figures.data import FINISHED
from podium.components.reporting.figures.seeds import pooled_variance
from podium.components.reporting.figures.style import Figure
from podium.components.reporting.model import ReportData, StageData
from podium.components.reporting.results_csv import Row
from podium.components.reporting.table import Table
from podium.components.reporting.tables import arms_of, axis_tables, broken_logs, stage_table, trials_table
from podium.components.study.load import dump_study

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


def sections(data: ReportData, rows: Sequence[Row], figures: Sequence[Figure]) -> list[Section]:
    """Every section that has something to say, in the order of a report."""
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
    sd = numbers.of_metric(metric, math.sqrt(variance))
    return (
        f"Power of {stage.name}: with {n} seeds a variant and a pooled SD of {sd}, a true lead of "
        f"{numbers.of_metric(metric, lead)} would be found in {power:.0%} of repetitions at α = {alpha:g}; "
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
    for table in evaluation_tables(data):
        blocks += [table, _named(figures, "smallbench")] if table.name == "smallbench" else [table]
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
