"""Arms: a variant's trials of one stage, their mean and spread, and who can be ranked.

A killed, diverged, collapsed or out-of-memory seed is what its variant did: the arm is not ranked by its surviving
seeds, which would be the better ones. A broken or missing trial is the machine's doing: the arm needs `min_seeds`
others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from podium.components.study.design import baseline
from podium.components.study.policy import Policy, needs_baseline_run
from podium.components.study.schema import Study
from podium.components.study.trials import RANKED
from podium.components.study.verdict import Arm, ArmSummary, StageResults, TrialOutcome, VariantRef
from podium.trainer.trial.result import Status

FAILED = (Status.KILLED, Status.DIVERGED, Status.COLLAPSED, Status.OUT_OF_MEMORY)
"""Ends that are the variant's own doing."""
MISSING = "missing"
"""What a trial without a result is called among the statuses."""


def arms_of(results: StageResults, *, baseline: str, min_seeds: int) -> list[Arm]:
    """An arm for each variant of the stage, by name, the baseline first; the order of outcomes has no influence."""
    by_variant: dict[str, dict[int, TrialOutcome]] = {ref.name: {} for ref in results.variants}
    for outcome in sorted(results.outcomes, key=_order):
        if outcome.variant in by_variant:
            by_variant[outcome.variant].setdefault(outcome.seed, outcome)
    arms = []
    for ref in sorted(results.variants, key=lambda ref: (ref.name != baseline, ref.name)):
        outcomes = by_variant[ref.name]
        seeds = sorted({*results.seeds, *outcomes})
        statuses = {seed: str(outcomes[seed].status) if seed in outcomes else MISSING for seed in seeds}
        values = {
            seed: outcome.value
            for seed, outcome in sorted(outcomes.items())
            if outcome.value is not None and math.isfinite(outcome.value)
        }
        arms.append(Arm(ref, values, statuses, _why_not(statuses, values, min_seeds), ref.name == baseline))
    return arms


def _order(outcome: TrialOutcome) -> tuple[object, ...]:
    # of two with one seed the one that went on from the other stands for both
    return outcome.variant, outcome.seed, outcome.fallback is None, outcome.fingerprint, outcome.status


def ranked(arms: Iterable[Arm]) -> list[Arm]:
    """The arms that can be ranked, lowest mean first; of equal means the baseline first, then by name."""
    return sorted((arm for arm in arms if not arm.why_not), key=lambda a: (a.mean, not a.is_baseline, a.name))


def near_tie(order: Sequence[Arm], leader: Arm, margin: float) -> tuple[list[Arm], str]:
    """Those of `order` that are within the margin of the leader, the smallest spread over seeds first.

    With a sentence if that changed the first of `order`. Empty where fewer than two are near or one has no spread.
    """
    near = [arm for arm in order if arm.mean - leader.mean <= margin]
    if len(near) < 2 or any(arm.sd is None for arm in near):
        return [], ""
    near.sort(key=lambda arm: (arm.sd, arm.mean, not arm.is_baseline, arm.name))
    first, best = near[0], order[0]
    if first is best:
        return near, ""
    return near, (
        f"near tie: {first.name} is {first.mean - best.mean:.4f} behind {best.name}, within {margin:g}, "
        f"and has the smallest spread (SD {first.sd:.4f})"
    )


def has_unranked_result(policy: Policy, arm: Arm) -> bool:
    """Whether an arm that can't be ranked is promoted: some seeds ended in a way that is a result to the policy.

    The others have to have ended as planned.
    """
    statuses = set(arm.statuses.values())
    return bool(policy.unranked_results & statuses) and statuses <= policy.unranked_results | {*RANKED}


def summaries(arms: Sequence[Arm], order: Sequence[Arm]) -> list[ArmSummary]:
    """The table of a verdict: ranked arms in the order given, then the others by name."""
    ranks = {arm.name: index for index, arm in enumerate(order, start=1)}
    table = sorted(arms, key=lambda arm: (ranks.get(arm.name, len(arms) + 1), arm.name))
    return [
        ArmSummary(
            variant=arm.name,
            rank=ranks.get(arm.name),
            n=arm.n,
            mean=arm.mean if arm.n else None,
            sd=arm.sd if arm.n else None,
            values={str(seed): arm.values.get(seed) for seed in arm.statuses},
            statuses={str(seed): status for seed, status in arm.statuses.items()},
            why=arm.why_not,
        )
        for arm in table
    ]


def counts(arms: Iterable[Arm]) -> dict[str, int]:
    """Trials by status, missing ones included."""
    found: dict[str, int] = {}
    for arm in arms:
        for status in arm.statuses.values():
            found[status] = found.get(status, 0) + 1
    return dict(sorted(found.items()))


def _why_not(statuses: dict[int, str], values: dict[int, float], min_seeds: int) -> str:
    failed = [f"seed {seed} {status}" for seed, status in statuses.items() if status in FAILED]
    if failed:
        return ", ".join(failed).replace("_", " ")
    if len(values) >= min_seeds:
        return ""
    without = [f"seed {seed} {_gap(status)}" for seed, status in statuses.items() if seed not in values]
    return f"{len(values)} of at least {min_seeds} seeds have a value" + (f" ({', '.join(without)})" if without else "")


def _gap(status: str) -> str:
    return "has no finite value" if status == Status.COMPLETED else status.replace("_", " ")


# What keeps a claim from being a proof, whatever the test says; and who goes on with a winner.
#
# A proof rests on fresh seeds, all of them, of a stage that was declared a proof before the first trial. Selection
# seeds are biased: the best of 10 equal arms looks better than it is, and testing it on the seeds that chose it is
# wrong in 3.7 % of cases at a nominal 1 % (two selection seeds of five). Looking before the end is another: 3.9 %
# with a look after each seed from 3 to 10.

_MACHINES = (MISSING, Status.BROKEN, Status.CANCELLED, Status.NOT_RUN_BUDGET)
Claim = Literal["proven", "candidate", "exploratory"]


def doubts_of_proof(study: Study, results: StageResults, arms: Iterable[Arm]) -> list[str]:
    """Every reason for which nothing that these arms show in this stage can be proven; none if there is none."""
    doubts = []
    arms = list(arms)
    if not study.stages[results.stage].proof:
        doubts.append("the stage is not a proof")
    if reuses_selection_seeds(results):
        doubts.append("its seeds chose the candidates")
    names = {arm.name for arm in arms}
    if any(outcome.reused_from for outcome in results.outcomes if outcome.variant in names):
        doubts.append("a result was taken from another run")
    for arm in arms:
        missing = sum(status == MISSING for status in arm.statuses.values())
        if missing:
            doubts.append(
                f"{missing} of {len(arm.statuses)} declared trials of {arm.name} have no result: "
                f"a look before the end proves nothing"
            )
        # a machine that broke says nothing of the variant; a run to the end without a figure does
        empty = [s for s, status in arm.statuses.items() if s not in arm.values and status not in _MACHINES]
        if empty:
            doubts.append(f"seed {empty[0]} of {arm.name} ended without a finite value")
    return doubts


def one_seed(arms: Iterable[Arm]) -> str:
    """The doubt about arms of a single seed; empty if there is none."""
    lone = [arm.name for arm in arms if arm.n < 2]
    return f"one seed never proves ({', '.join(lone)})" if lone else ""


def claim_of(results: StageResults, *, proven: bool) -> Claim:
    """How a winner may be called."""
    if reuses_selection_seeds(results):
        return "exploratory"
    return "proven" if proven else "candidate"


def reuses_selection_seeds(results: StageResults) -> bool:
    """Whether a seed of this stage was a seed of one that chose who takes part in it."""
    used = {seed for verdict in results.previous if verdict.results for seed in verdict.results.seeds}
    return bool(used & set(results.seeds))


def with_baseline(study: Study, results: StageResults, refs: list[VariantRef]) -> list[VariantRef]:
    """Those who go on, and the baseline where the next stage has to run it for comparison."""
    following, base = study.stage_after(results.stage), study.baseline.variant
    took_part = any(ref.name == base for ref in results.variants) or not needs_baseline_run(study, results.stage)
    if following is None or not needs_baseline_run(study, following) or not took_part:
        return refs
    return refs if any(ref.name == base for ref in refs) else [*refs, baseline(study)]
