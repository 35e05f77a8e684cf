"""What keeps a claim from being a proof, whatever the test says; and who goes on with a winner.

A proof rests on fresh seeds, all of them, of a stage that was declared a proof before the first trial. Selection seeds
are biased: the best of 10 equal arms looks better than it is, and testing it on the seeds that chose it is wrong in
3.7 % of cases at a nominal 1 % (two selection seeds of five). Looking before the end is another: 3.9 % with a look
after each seed from 3 to 10.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from podium.components.study.comparison import needs_baseline_run
from podium.components.study.design import baseline
from podium.components.study.schema import Study
from podium.components.verdicts.ranking import MISSING, Arm
from podium.components.verdicts.verdict import StageResults, VariantRef
from podium.trainer.result import Status

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
    stages = list(study.stages)
    following = stages[stages.index(results.stage) + 1 :][:1]
    base = study.baseline.variant
    took_part = any(ref.name == base for ref in results.variants) or not needs_baseline_run(study, results.stage)
    if not following or not needs_baseline_run(study, following[0]) or not took_part:
        return refs
    return refs if any(ref.name == base for ref in refs) else [*refs, baseline(study)]
