"""Everything that ran goes on, and what could not be paid for stops nothing.

Nothing is ranked and no hypothesis tested. Trials that the budget did not pay for are `not_run_budget`; with them alone
the stage still promotes, namely what the stage before did, so that evaluation and registration follow.
"""

from __future__ import annotations

from podium.components.study.outcomes import RANKED
from podium.components.study.schema import Study
from podium.components.verdicts.ranking import Arm, ranked, summaries
from podium.components.verdicts.verdict import StageResults, VariantRef, Verdict
from podium.trainer.result import Status


def collapsed(arms: list[Arm]) -> list[Arm]:
    """The arms in some of whose seeds experts collapsed; the others ended as planned."""
    ends = {*RANKED, Status.COLLAPSED}
    return [arm for arm in arms if Status.COLLAPSED in arm.statuses.values() and ends.issuperset(arm.statuses.values())]


def said_of(arms: list[Arm]) -> str:
    """What a reason adds about collapsed arms."""
    return f"; collapsed, which is a result: {', '.join(arm.name for arm in arms)}" if arms else ""


def if_affordable(study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
    """Promote what has a figure; where nothing could be paid for, what the stage before promoted."""
    order, others = ranked(arms), collapsed(arms)
    unpaid = [arm.name for arm in arms if Status.NOT_RUN_BUDGET in arm.statuses.values()]
    promoted: list[VariantRef] = [arm.variant for arm in [*order, *others]]
    reason = f"promote: all {len(promoted)} that have a result go on{said_of(others)}"
    if not promoted:
        promoted = results.previous[-1].promoted if results.previous else results.variants
        reason = f"promote: nothing of {results.stage} could be paid for, so what was there before goes on"
    notes = [f"not run, the budget did not pay for it: {', '.join(unpaid)}"] if unpaid else []
    return Verdict(
        stage=results.stage,
        policy="if_affordable",
        parameters={},
        decision="promote",
        reason=reason + (f"; {notes[0]}" if notes and (order or others) else ""),
        promoted=promoted,
        metric=study.stages[results.stage].promotion.metric,
        ranking=summaries(arms, order),
        not_chosen={arm.name: arm.why_not for arm in arms if arm.why_not},
        notes=notes,
    )
