"""What `decide` takes and gives: a verdict holds every number it rests on and can be recomputed from its JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from podium.trainer.trial.result import Status
from podium.trainer.trial.section import Section


class VariantRef(Section):
    """A variant as a stage runs it: declared in the study, or made by a verdict."""

    name: str
    overrides: dict[str, Any] = {}
    """Dotted field → value, over the base config."""
    description: str = ""
    axis_values: dict[str, Any] = {}
    """Axis → its value in this variant, the baseline's where the variant leaves it alone."""
    repeats: int = 1
    """Times that the stage's number of seeds is run: the further seeds follow the stage's last one."""


class TrialOutcome(Section):
    """What a verdict needs of one trial."""

    variant: str
    seed: int
    fingerprint: str
    status: Status
    value: float | None
    """The metric; None where the trial has none (killed, broken, diverged)."""
    final_val_loss: float | None = None
    tokens: int = 0
    device: str | None = None
    tokenizer: str | None = None
    """Fingerprint of the dataset: perplexities are compared only where it is the same."""
    cost_usd: float | None = None
    time_to_target_seconds: float | None = None
    """None where the target was missed."""
    training_seconds: float | None = None
    """A trial that missed its target needs at least this long."""
    steps: int = 0
    targets: dict[str, float | None] = {}
    """Target loss → training seconds at its first crossing, None where there was none."""
    fallback: str | None = None
    """The fallback that the trial belongs to: it went on from the one of the same variant and seed."""
    reused_from: str | None = None
    """The run whose result was taken, where it was not trained in this one."""


class AskedTrial(Section):
    """One trial of a stage by itself: of a wave, a repeat, or the continuation of another."""

    variant: VariantRef
    seed: int
    group: str | None = None
    """The group of the study whose row it is."""
    fallback: str | None = None
    """The fallback that it belongs to: it goes on from the trial of the same variant and seed."""
    target: float | None = None
    """Its target loss, where that is not the stage's."""


class Amendment(Section):
    """What a person changed after the plan was fixed: it is on the ledger, and a claim that it made is exploratory."""

    kind: Literal["approve", "override", "extend"]
    because: str = ""
    by: str = ""
    promote: str | None = None
    """The variant that an override lets go on."""
    seeds: list[int] = []
    """Seeds that an extension adds to every variant of the stage."""


class StageResults(Section):
    """A stage as it stands: who takes part, and what is known of their trials."""

    stage: str
    variants: list[VariantRef]
    seeds: list[int]
    outcomes: list[TrialOutcome]
    """One for each trial that has a result; a trial without one is missing."""
    spent_usd: float = 0.0
    """Money spent by all stages so far."""
    previous: list[Verdict] = []
    """The verdicts of the stages before, in order."""
    amendments: list[Amendment] = []
    """Those of this stage, in order."""
    asked: list[MoreTrials] = []
    """What the policy has asked for so far, in order."""


class ArmSummary(Section):
    """A variant in a verdict's ranking."""

    variant: str
    rank: int | None
    """1 is best; None for an arm that can't be ranked, with `why`."""
    n: int
    mean: float | None
    sd: float | None
    """Sample standard deviation over seeds; None for fewer than two."""
    values: dict[str, float | None]
    """Seed → value, None where it is missing."""
    statuses: dict[str, str]
    """Seed → status."""
    difference: float | None = None
    """Mean minus the baseline's: below 0 is better."""
    interval: tuple[float, float] | None = None
    """Two-sided 1 - 2·alpha interval of the difference, by pooled variance."""
    p: float | None = None
    """One-sided p of being better than the baseline."""
    why: str = ""


def mean_of(values: Collection[float]) -> float:
    """Arithmetic mean, summed exactly, so that no order of values changes it."""
    return math.fsum(values) / len(values)


def squared_deviations(values: Collection[float]) -> float:
    """Sum of squared deviations from the mean; exactly 0 for values that are all the same.

    Taken about the least value: a mean of 3, 5, 6 or 7 equal values may be one ulp off, which left a spread of 1e-17
    where there is none, and "proved" equal arms at p = 1e-45.
    """
    least = min(values)
    above = [value - least for value in values]
    mean = mean_of(above)
    return math.fsum((each - mean) ** 2 for each in above)


@dataclass(frozen=True)
class Arm:
    """A variant with its values by seed; only finite ones are values."""

    variant: VariantRef
    values: dict[int, float]
    statuses: dict[int, str]
    why_not: str
    """Why it can't be ranked; empty if it can."""
    is_baseline: bool

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def n(self) -> int:
        """Seeds with a value."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean_of(self.values.values())

    @property
    def squares(self) -> float:
        """Sum of squared deviations from the mean."""
        return squared_deviations(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else None


class FallbackTaken(Section):
    """A fallback that the study declares and that was taken, with its numbers."""

    name: Literal["relax", "repeat", "tighten"]
    reason: str
    numbers: dict[str, Any] = {}


class Verdict(Section):
    """A stage's decision, the numbers it rests on, and what was not chosen."""

    format_version: int = 1
    stage: str
    policy: str
    parameters: dict[str, Any]
    """The policy as declared."""
    decision: Literal["promote", "stop", "await"]
    reason: str
    """One sentence that a reader can act on."""
    promoted: list[VariantRef] = []
    """Who goes on, best first; the next stage's variants."""
    winner: str | None = None
    proven: bool = False
    claim: Literal["proven", "candidate", "exploratory", "none"] = "none"
    metric: str
    ranking: list[ArmSummary] = []
    test: dict[str, Any] = {}
    """Name, statistic, degrees of freedom, p, alpha, pooled SD and the like, as the policy computed them."""
    not_chosen: dict[str, str] = {}
    """Variant → why not."""
    tops: dict[str, str] = {}
    """Axis → variant of its best value (top_per_axis)."""
    counts: dict[str, int] = {}
    """Trials by status, missing ones included."""
    rank_correlation: dict[str, Any] | None = None
    """How the stage before ranked the arms that this one ranks: `stage`, `arms`, `spearman` (None for fewer than 3)."""
    fallbacks: list[FallbackTaken] = []
    """Where the plan did not serve, what was done instead."""
    notes: list[str] = []
    results: StageResults | None = None
    """The inputs: enough to recompute everything above."""

    @property
    def opponent(self) -> str:
        """What the ranking's `difference`, `interval` and `p` are against, in words."""
        if "target" in self.test:
            return f"the target {self.test['target']:g}"
        if str(self.test.get("control", "")).startswith("threshold"):
            return f"the threshold {self.test['control_mean']:g}"
        return "the baseline"


class MoreTrials(Section):
    """Not yet: run these first. The answer and its inputs are a ledger entry."""

    reason: str
    kind: Literal["wave", "pivot", "repeat", "fallback", "design"] = "wave"
    variants: list[VariantRef] = []
    seeds: list[int] = []
    """Every variant is run with every seed."""
    trials: list[AskedTrial] = []
    """Single trials besides."""
    numbers: dict[str, Any] = {}
    """What the answer rests on."""


StageResults.model_rebuild()


# A verdict as Markdown: what the select step shows in the Kubeflow UI, and what `podium status` prints of it.

_MOST_ROWS = 40
"""Rows of the table; the verdict's JSON has all of them."""


def to_markdown(verdict: Verdict) -> str:
    """The decision first, then the arms with every seed, the test, who was not chosen and why."""
    return "\n".join(_lines(verdict)) + "\n"


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"## {verdict.stage}: {verdict.decision}"
    yield ""
    yield f"{_cell(verdict.reason)}."
    yield ""
    if verdict.winner is not None:
        yield f"Best: **{_cell(verdict.winner)}**. Claim: **{verdict.claim}**."
        yield ""
    compared = any(row.difference is not None for row in verdict.ranking)
    tested = any(row.p is not None for row in verdict.ranking)
    heads = ["rank", "variant", f"mean {verdict.metric}", "SD", "n", "by seed"]
    heads += [f"difference to {verdict.opponent.removeprefix('the ')}"] * compared + ["interval", "p"] * tested
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in verdict.ranking[:_MOST_ROWS]:
        cells = [str(row.rank or "–"), row.variant, _number(row.mean), _number(row.sd), str(row.n), _seeds(row)]
        cells += [_number(row.difference, "+.4f")] * compared
        cells += [_interval(row), _number(row.p, ".3g")] * tested
        yield "| " + " | ".join(map(_cell, cells)) + " |"
    if len(verdict.ranking) > _MOST_ROWS:
        yield ""
        yield f"{len(verdict.ranking) - _MOST_ROWS} more arms are in the verdict's file."
    yield ""
    if verdict.test.get("name", "none") != "none":
        yield _test(verdict)
        yield ""
    if verdict.tops:
        yield "Best value by axis: " + ", ".join(f"{axis}: {_cell(name)}" for axis, name in verdict.tops.items()) + "."
        yield ""
    if verdict.promoted:
        yield "Goes on: " + ", ".join(_cell(ref.name) for ref in verdict.promoted) + "."
        yield ""
    shown = list(verdict.not_chosen.items())[:_MOST_ROWS]
    yield from (f"- not {_cell(name)}: {_cell(why)}" for name, why in shown)
    yield from (f"- {_cell(note)}" for note in verdict.notes)
    yield ""
    yield (
        "Trials: " + ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in verdict.counts.items()) + "."
    )


def _test(verdict: Verdict) -> str:
    test = verdict.test
    text = f"Test: {test['name']} against {test['control']}, alpha {test['alpha']:g}, {test['comparisons']} compared"
    if test["pooled_sd"] is not None:
        text += f", pooled SD {test['pooled_sd']:.4f} on {test['degrees_of_freedom']} degrees of freedom"
    if "p" in test:
        text += f"; t = {test['statistic']:.3f}, p = {test['p']:.3g}"
    return f"{text}."


def _seeds(row: ArmSummary) -> str:
    parts = [
        f"{seed}: {row.statuses[seed].replace('_', ' ') if value is None else f'{value:.4f}'}"
        for seed, value in row.values.items()
    ]
    return ", ".join(parts)


def _interval(row: ArmSummary) -> str:
    return "–" if row.interval is None else f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}"


def _number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def _cell(text: str) -> str:
    """Text that can't break a table or become markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
