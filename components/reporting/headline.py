"""The verdict in a sentence or two, worded so that a reader who stops there knows what was found and how surely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from podium.components.reporting import numbers
from podium.components.reporting.model import ReportData, StageData
from podium.components.reporting.tables import arm_figures, arms_of
from podium.components.verdicts.verdict import ArmSummary, Verdict

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
    decimals = numbers.decimals_of(verdict.metric)
    parts = [f"{name[:1].upper()}{name[1:]} {numbers.of_metric(verdict.metric, arm.mean)}"]
    if base is not None and base.mean is not None and base is not arm:
        parts[0] += f" against the baseline's {numbers.of_metric(verdict.metric, base.mean)}"
        gap = arm.mean - base.mean
        size = f"{numbers.of_metric(verdict.metric, abs(gap))} {unit}".strip()
        told = f"{size} {'better' if gap < 0 else 'worse'}"
        level = verdict.test.get("alpha")
        if arm.interval is not None:
            width = f"{100 * (1 - 2 * level):.0f}\u00a0% " if isinstance(level, float) else ""
            told += f" ({width}interval {numbers.interval(arm.interval, decimals)})"
        parts.append(told)
    if arm.p is not None:
        p = numbers.p_value(arm.p)
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
        sentence += f" Perplexity {numbers.perplexity(ours)} against {numbers.perplexity(theirs)}."
    if data.registration and data.registration.get("variant") == arm.variant:
        sentence += f" Registered as {data.registration.get('uri')}."
    doubt = next((note for note in verdict.notes if note.startswith("not proven")), "")
    return f"{sentence} {_full(doubt)}".strip()


def _effect_facts(verdict: Verdict, arm: ArmSummary | None) -> list[tuple[str, str]]:
    if arm is None or arm.difference is None:
        return []
    facts = [(f"gap to {verdict.opponent}", numbers.signed(arm.difference, numbers.decimals_of(verdict.metric)))]
    if arm.p is not None:
        facts.append(("p, one-sided", numbers.p_value(arm.p)))
    facts.append(("seeds", str(arm.n)))
    return facts


def _money(data: ReportData) -> tuple[tuple[str, str], ...]:
    if data.spent_usd is None:
        return ()
    facts = [("spent", numbers.usd(data.spent_usd))]
    naive = data.plan.get("usd_naive") if data.plan else None
    if isinstance(naive, int | float) and naive > 0:
        facts.append(("naive plan", numbers.usd(float(naive))))
    return tuple(facts)


def _list(names: list[str]) -> str:
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _full(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence and f"{sentence[:1].upper()}{sentence[1:]}{'' if sentence.endswith(('.', '!', '?')) else '.'}"
