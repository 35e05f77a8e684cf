"""The least time to the target, misses censored.

No hypothesis is tested: a ranking by the restricted mean, PAR-2 or the median over seeds , all three
shown. Limits: with one seed a rank is a hint; times compare only on one type of device with the device to itself, so a
stage with several is refused; what nobody reached is not ranked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from podium.components.study.policy import ArmCount, Conclusion, Policy
from podium.components.study.schema import TIME, Metric, Stage, Study
from podium.components.study.verdict import (
    Arm,
    ArmSummary,
    AskedTrial,
    FallbackTaken,
    MoreTrials,
    StageResults,
    TrialOutcome,
    Verdict,
)
from podium.components.verdicts.arms import reuses_selection_seeds, summaries
from podium.components.verdicts.stats import Time, Times, horizon_of, summarise, time_of
from podium.trainer.trial.errors import Problem
from podium.trainer.trial.section import Seconds, Section

# A stage's times to a target, by arm: statistics, order, and the tables that verdicts show of them.


@dataclass(frozen=True)
class Race:
    """The stage's times as they rank."""

    target: float | None
    """The loss to which the times are; None where the stage declares none."""
    by: str
    """The statistic that ranks."""
    times: dict[str, Times]
    """Of those arms that have `min_seeds` seeds which say something."""
    horizon: float
    """Seconds."""
    order: tuple[Arm, ...]
    """The arms that have times, fastest first."""
    outcomes: tuple[TrialOutcome, ...]
    """One a variant and seed, its time to `target` as its time."""
    fallbacks: tuple[FallbackTaken, ...] = ()

    @property
    def reached(self) -> list[Arm]:
        """The arms of which a seed arrived, fastest first."""
        return [arm for arm in self.order if self.times[arm.name].reached]

    @property
    def seconds(self) -> list[float]:
        """The times of all trials that arrived, shortest first."""
        known = [outcome.time_to_target_seconds for outcome in self.outcomes]
        return sorted(each for each in known if each is not None)

    def numbers(self) -> dict[str, Any]:
        """The statistics of every arm, for the verdict."""
        plain = {
            name: {
                "reached": own.reached,
                "seeds": own.seeds,
                "restricted_mean": own.restricted_mean,
                "par2": own.par2,
                "median": own.median,
            }
            for name, own in sorted(self.times.items())
        }
        return {"target_loss": self.target, "by": self.by, "horizon_seconds": self.horizon, "times": plain}


def race_of(
    arms: Sequence[Arm],
    outcomes: Sequence[TrialOutcome],
    *,
    min_seeds: int,
    by: str,
    horizon: float | None,
    target: float | None,
) -> Race:
    """The race over these outcomes; `horizon` is by default the longest time that any trial trained."""
    horizon = horizon or horizon_of(outcomes)
    by_arm: dict[str, list[Time]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.variant, outcome.seed)):
        time = time_of(outcome, horizon)
        if time is not None:
            by_arm.setdefault(outcome.variant, []).append(time)
    times = {
        arm.name: summarise(by_arm[arm.name], horizon) for arm in arms if len(by_arm.get(arm.name, ())) >= min_seeds
    }

    def key(arm: Arm) -> tuple[Any, ...]:
        own = times[arm.name]
        # of equal ones who reached the target more often, then by PAR-2
        return own.by(by), -own.reached / own.seeds, own.par2, not arm.is_baseline, arm.name

    order = tuple(sorted((arm for arm in arms if arm.name in times), key=key))
    return Race(target, by, times, horizon, order, tuple(outcomes))


def time_table(race: Race, arms: Sequence[Arm], order: Sequence[Arm]) -> list[ArmSummary]:
    """The verdict's table: the statistic that ranks as the mean, each seed's time, None for a miss."""
    seconds = {(o.variant, o.seed): o.time_to_target_seconds for o in race.outcomes}
    table = []
    for row in summaries(arms, order):
        own = race.times.get(row.variant)
        figure = own.by(race.by) if own is not None else math.inf
        table.append(
            row.model_copy(
                update={
                    "n": own.seeds if own is not None else 0,
                    "mean": figure if math.isfinite(figure) else None,
                    "sd": None,
                    "values": {seed: seconds.get((row.variant, int(seed))) for seed in row.statuses},
                    "why": "" if own is not None else row.why or "no seed says anything of its time",
                }
            )
        )
    return table


# What is done where a stage of times does not go as planned: a looser target, repeats, a tighter target.
#
#     nobody reached the target       rank by the time to `relax`, which the trials have timed too
#     times vary from seed to seed    the leaders again, until each has `runs`; then the median ranks
#     times are all alike             the stopped trials go on from their checkpoints to `tighten.target`
#
# In this order, each once; the numbers that decided are in the answer, so on the ledger. How much times vary is the
# coefficient of variation SD / mean of an arm's replicates, pooled over arms by degrees of freedom: a root mean square.


class Repeats(Section):
    """Where times vary too much from seed to seed: the leaders again, and the median."""

    above_cv: float = Field(default=0.10, gt=0)
    """Coefficient of variation over replicates (SD / mean, pooled over variants) above which times vary too much."""
    leaders: int = Field(default=5, ge=1)
    """Variants that are run again."""
    runs: int = Field(default=3, ge=2, le=10)
    """Runs that each of them has then."""


class Tightening(Section):
    """Where the times are all alike: a tighter target, to which the stopped trials go on from their checkpoints."""

    below_spread: float = Field(default=0.10, gt=0)
    """(longest - shortest) / median of the reached times under which they are all alike."""
    target: float = Field(gt=0)
    """The tighter target loss."""


class Fallbacks(Section):
    """What is done where the plan for a stage of times does not serve. Each is on the ledger with its numbers."""

    relax: float | None = Field(default=None, gt=0)
    """Nobody reached the target: rank by the time to this loss, which the trials have timed too."""
    repeat: Repeats | None = None
    tighten: Tightening | None = None

    def most_trials(self, trials: int) -> dict[str, int]:
        """What each would run besides the stage's `trials`, at most; two of them never come together."""
        found = {}
        if self.repeat is not None:
            found["repeats"] = min(self.repeat.leaders, trials) * (self.repeat.runs - 1)
        if self.tighten is not None:
            found["a tighter target"] = trials
        return found


def fallback_problems(name: str, stage: Stage, fallbacks: Fallbacks) -> Iterator[Problem]:
    """Fallbacks that could never be taken: without times, or to a target on the wrong side of the stage's own."""
    where, rule, metric = f"stages.{name}.promotion.fallbacks", stage.stop.target, stage.promotion.metric
    if fallbacks != Fallbacks() and metric != TIME:
        yield Problem(where, f"are for a stage that ranks by {TIME}, got metric {metric!r}")
    elif rule is not None:
        looser = [loss for loss in rule.losses if loss > rule.loss]
        if fallbacks.relax is not None and fallbacks.relax not in looser:
            timed = ", ".join(f"{loss:g}" for loss in looser) or "none"
            yield Problem(
                f"{where}.relax",
                f"must be a looser loss that stop.target.also times ({timed}), got {fallbacks.relax:g}",
            )
        if fallbacks.tighten is not None and fallbacks.tighten.target >= rule.loss:
            got = fallbacks.tighten.target
            yield Problem(f"{where}.tighten.target", f"must be under the target {rule.loss:g}, got {got:g}")


def race(
    study: Study,
    results: StageResults,
    arms: Sequence[Arm],
    *,
    fallbacks: Fallbacks,
    by: str,
    horizon: float | None,
) -> Race | MoreTrials:
    """The stage's times as they rank, after the fallbacks that were taken; or the trials that one needs first."""
    stage = study.stages[results.stage]
    declared = None if stage.stop.target is None else stage.stop.target.loss

    def run(outcomes: Sequence[TrialOutcome], statistic: str, target: float | None) -> Race:
        return race_of(arms, outcomes, min_seeds=stage.min_seeds, by=statistic, horizon=horizon, target=target)

    tightened = next((each for each in results.asked if each.kind == "fallback"), None)
    target = declared if tightened is None else tightened.trials[0].target
    outcomes = _latest(results.outcomes, target if tightened is not None else None)
    found = run(outcomes, by, target)
    if tightened is not None:
        taken = FallbackTaken(name="tighten", reason=tightened.reason, numbers=tightened.numbers)
        found = replace(found, fallbacks=(taken,))
    elif not found.reached and fallbacks.relax is not None:
        relaxed = run(_timed_to(outcomes, fallbacks.relax), by, fallbacks.relax)
        found = _relaxed(found, relaxed) if relaxed.reached else found
    rule = fallbacks.repeat
    if rule is not None and found.reached:
        asked = [each for each in results.asked if each.kind == "repeat" and each.trials]
        numbers = asked[0].numbers if asked else variation(found.outcomes)
        if asked or (numbers["cv"] is not None and numbers["cv"] > rule.above_cv):
            by_median = replace(run(found.outcomes, "median", found.target), fallbacks=found.fallbacks)
            short = [] if tightened is not None else _short(results, by_median, rule)
            reason = (
                f"times vary by {numbers['cv']:.1%} over replicates ({numbers['degrees_of_freedom']} degrees of "
                f"freedom), more than {rule.above_cv:.0%}: the {rule.leaders} fastest get {rule.runs} runs each, and "
                f"the median ranks"
            )
            if short:
                return MoreTrials(
                    kind="repeat", reason=reason, trials=short, numbers=numbers | {"limit": rule.above_cv}
                )
            repeated = FallbackTaken(name="repeat", reason=reason, numbers=numbers | {"limit": rule.above_cv})
            found = replace(by_median, fallbacks=(*found.fallbacks, repeated))
    alike = fallbacks.tighten
    if alike is not None and not any(taken.name in ("relax", "tighten") for taken in found.fallbacks):
        tighter = _tightening(results, found, alike)
        if tighter is not None:
            return tighter
    return found


def variation(outcomes: Iterable[TrialOutcome]) -> dict[str, Any]:
    """`cv` of the times over replicates, None where no variant has two, and how many degrees of freedom it has."""
    times: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.time_to_target_seconds is not None:
            times.setdefault(outcome.variant, []).append(outcome.time_to_target_seconds)
    squares, degrees = [], 0
    for own in times.values():
        if len(own) > 1:
            squares.append((len(own) - 1) * (statistics.stdev(own) / statistics.fmean(own)) ** 2)
            degrees += len(own) - 1
    cv = math.sqrt(math.fsum(squares) / degrees) if degrees else None
    return {"cv": cv, "degrees_of_freedom": degrees}


def _latest(outcomes: Iterable[TrialOutcome], target: float | None) -> list[TrialOutcome]:
    """One outcome a variant and seed: that of the trial which went on, where there is one that ran.

    With a `target` those that did not go on are timed to it as well: most have not reached it.
    """
    found: dict[tuple[str, int], TrialOutcome] = {}
    for outcome in outcomes:
        if outcome.fallback is None:
            timed = [outcome] if target is None else _timed_to([outcome], target)
            found.setdefault((outcome.variant, outcome.seed), timed[0])
    for outcome in outcomes:
        if outcome.fallback is not None and outcome.training_seconds is not None:
            found[outcome.variant, outcome.seed] = outcome
    return [found[key] for key in sorted(found)]


def _timed_to(outcomes: Iterable[TrialOutcome], target: float) -> list[TrialOutcome]:
    key = f"{target:g}"
    return [each.model_copy(update={"time_to_target_seconds": each.targets.get(key)}) for each in outcomes]


def _relaxed(declared: Race, relaxed: Race) -> Race:
    numbers = {
        "target": declared.target,
        "reached": 0,
        "trials": len(declared.outcomes),
        "horizon_seconds": declared.horizon,
        "relaxed_target": relaxed.target,
        "reached_relaxed": len(relaxed.seconds),
    }
    reason = (
        f"none of {numbers['trials']} trials reached {declared.target:g} within {declared.horizon:.1f} s: ranked by "
        f"the time to {relaxed.target:g}, which {numbers['reached_relaxed']} reached"
    )
    return replace(relaxed, fallbacks=(FallbackTaken(name="relax", reason=reason, numbers=numbers),))


def _short(results: StageResults, race: Race, rule: Repeats) -> list[AskedTrial]:
    """The runs that the leaders lack."""
    found = []
    for arm in race.reached[: rule.leaders]:
        used = {outcome.seed for outcome in results.outcomes if outcome.variant == arm.name}
        following = range(max(used) + 1, max(used) + 1 + rule.runs - len(used))
        found += [AskedTrial(variant=arm.variant, seed=seed) for seed in following]
    return found


def _tightening(results: StageResults, race: Race, rule: Tightening) -> MoreTrials | None:
    seconds = race.seconds
    if len(race.reached) < 2:
        return None
    middle = statistics.median(seconds)
    spread = (seconds[-1] - seconds[0]) / middle
    if spread >= rule.below_spread:
        return None
    variants = {ref.name: ref for ref in results.variants}
    name = f"to-{rule.target:g}"
    trials = [
        AskedTrial(variant=variants[each.variant], seed=each.seed, fallback=name, target=rule.target)
        for each in race.outcomes
        if each.time_to_target_seconds is not None
    ]
    numbers = {
        "spread": spread,
        "limit": rule.below_spread,
        "shortest_seconds": seconds[0],
        "median_seconds": middle,
        "longest_seconds": seconds[-1],
        "trials": len(trials),
        "target": race.target,
        "tighter_target": rule.target,
    }
    reason = (
        f"the times of {len(trials)} trials are all alike: they spread over {spread:.1%} of their median "
        f"{middle:.1f} s, less than {rule.below_spread:.0%}; all go on from their checkpoints to {rule.target:g}"
    )
    return MoreTrials(kind="fallback", reason=reason, trials=trials, numbers=numbers)


class FastestToTarget(Policy):
    """The variants with the least time to the target go on; a miss counts as at least the time it took."""

    policy: Literal["fastest_to_target"] = "fastest_to_target"
    metric: Metric = "time_to_target_seconds"
    horizon_seconds: Seconds | None = Field(default=None, gt=0)
    """Time up to which the restricted mean is taken and whose double PAR-2 charges for a miss. None: the longest time
    that any trial of the stage trained."""
    by: Literal["restricted_mean", "par2", "median"] = "restricted_mean"
    """The statistic that ranks; all three are in the verdict."""
    top: int = Field(default=1, ge=1)
    """Variants that go on."""
    fallbacks: Fallbacks = Fallbacks()

    place: ClassVar[int] = 80
    needs_baseline: ClassVar[bool] = False

    def problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """It ranks times alone."""
        if not self.by_time:
            where = f"stages.{stage}.promotion.metric"
            yield Problem(where, f"must be {TIME!r} for {self.policy}, got {self.metric!r}")
        yield from super().problems(study, stage)
        yield from fallback_problems(stage, study.stages[stage], self.fallbacks)

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """The `top` fastest."""
        return ArmCount(1, min(here.most, self.top), False)

    def evaluated_arms(self, most: int) -> int:
        """Those that are promoted."""
        return min(most, self.top)

    def fallback_trials(self, trials: int) -> dict[str, int]:
        """Repeats and a tighter target."""
        return self.fallbacks.most_trials(trials)

    def finalists(self, verdict: Verdict) -> list[ArmSummary]:
        """Those that are promoted: the others are points of a design around the winner, which nobody would use."""
        promoted = {ref.name for ref in verdict.promoted}
        return [row for row in super().finalists(verdict) if row.variant in promoted]

    def conclusion(self, verdict: Verdict, winner: str) -> Conclusion:
        """Who is the fastest, in seconds."""
        target = verdict.test.get("target_loss")
        to = "the target" if target is None else f"a validation loss under {target:g}"
        arm = next((row for row in verdict.ranking if row.variant == winner), None)
        measured = arm is not None and arm.mean is not None
        detail = f"{arm.mean:.4g} s of training, {arm.n} of its seeds counted." if arm and measured else ""
        return Conclusion(f"{winner} is the fastest to {to}.", detail)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
        """Promote the `top` fastest; stop where nobody reached the target."""
        run = race(study, results, arms, fallbacks=self.fallbacks, by=self.by, horizon=self.horizon_seconds)
        if isinstance(run, MoreTrials):
            return run
        chosen = run.reached[: self.top]
        names = {arm.name for arm in chosen}
        if not chosen:
            reason = f"stop: nobody reached the target within {run.horizon:.1f} s ({len(run.times)} arms)"
        else:
            first = run.times[chosen[0].name]
            target = "" if run.target is None else f" {run.target:g}"
            reason = (
                f"promote {', '.join(arm.name for arm in chosen)}: {chosen[0].name} has the least "
                f"{run.by.replace('_', ' ')} time to the target{target}, {first.by(run.by):.1f} s, "
                f"{first.reached} of {first.seeds} seeds reached it"
            )
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote" if chosen else "stop",
            reason=reason,
            promoted=[arm.variant for arm in chosen],
            winner=chosen[0].name if chosen else None,
            claim="none" if not chosen else "exploratory" if reuses_selection_seeds(results) else "candidate",
            metric=self.metric,
            ranking=time_table(run, arms, run.order),
            test={"name": "none", "why": "a ranking of times proves nothing", **run.numbers()},
            not_chosen={arm.name: _why(arm, run, chosen) for arm in arms if arm.name not in names},
            fallbacks=list(run.fallbacks),
            notes=[f"{taken.name}: {taken.reason}" for taken in run.fallbacks],
        )


def _why(arm: Arm, run: Race, chosen: list[Arm]) -> str:
    own = run.times.get(arm.name)
    if own is None:
        return arm.why_not or "no seed says anything of its time"
    if not own.reached:
        return f"none of {own.seeds} seeds reached the target"
    figure = own.by(run.by)
    said = f"{own.reached} of {own.seeds} seeds reached the target"
    if not chosen or math.isinf(figure):
        return said
    return f"{figure - run.times[chosen[0].name].by(run.by):.1f} s behind {chosen[0].name}; {said}"
