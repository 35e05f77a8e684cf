"""The report's content in its order: the headline, then sections of prose, tables, figures and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from podium.components.reporting import table
from podium.components.reporting.model import ReportData, StageData, arms_of, means_of
from podium.components.reporting.results_csv import Row
from podium.components.reporting.run_tables import (
    champion_table,
    counts_sentence,
    data_table,
    gate_table,
    identity_table,
    ledger_table,
    models_table,
    money_table,
    registration_table,
    stages_table,
    variants_table,
    versions_table,
)
from podium.components.reporting.table import Block, Bullets, Code, Figure, Gallery, Headline, Section
from podium.components.reporting.tables import axis_tables, broken_logs, evaluation_tables, stage_table, trials_table
from podium.components.study.load import dump_study
from podium.components.study.policy import Conclusion, policy_of
from podium.components.study.trials import RANKED
from podium.components.study.verdict import ArmSummary, Verdict
from podium.components.verdicts.stats import pooled_over, t_quantile

MAX_STUDY_TEXT = 60_000
POWER = 0.8
DEFAULT_ALPHA = 0.05


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
        lost = [t for t in stage.trials if t.result and t.status not in RANKED]
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
    arms = arms_of(stage.trials, metric).values()
    noise = pooled_over(arms)
    if not noise.sd:
        return ""
    alpha = getattr(stage.stage.promotion, "alpha", DEFAULT_ALPHA)
    if alpha is None:
        return ""  # the policy selects and tests nothing
    n = max(arm.n for arm in arms)
    freedom = noise.degrees_of_freedom
    lead = (t_quantile(alpha, freedom) + t_quantile(1 - power, freedom)) * noise.sd * math.sqrt(2 / n)
    sd = table.of_metric(metric, noise.sd)
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
    return replace(section, blocks=tuple(block for block in section.blocks if isinstance(block, Code) or block))


# The headline: the verdict in a sentence, and the numbers it rests on.

UNITS = {
    "final_val_loss": ("validation loss", "nats per token"),
    "best_val_loss": ("best validation loss", "nats per token"),
    "final_val_perplexity": ("validation perplexity", ""),
    "final_bits_per_byte": ("bits per byte", ""),
}


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
    policy = policy_of(data.study, stage.name)
    if not policy.ranks:
        return _compared(data)
    if not winner:
        return Headline(
            "open", "concluded", f"{stage.name.capitalize()} ended without a winner.", _full(verdict.reason), facts
        )
    conclusion = policy.conclusion(verdict, winner)
    if conclusion is not None:
        return _concluded(data, verdict, winner, conclusion)
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


def _concluded(data: ReportData, verdict: Verdict, winner: str, conclusion: Conclusion) -> Headline:
    words = "exploratory" if verdict.claim == "exploratory" else "candidate"
    detail = " ".join(filter(None, (conclusion.detail, _full(verdict.reason))))
    if data.registration and data.registration.get("variant") == winner:
        detail += f" Registered as {data.registration.get('uri')}."
    return Headline("candidate", words, conclusion.sentence, detail, _money(data))


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
    perplexities = means_of(stage.trials, "final_val_perplexity")
    ours, theirs = perplexities.get(arm.variant), perplexities.get(data.baseline)
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
