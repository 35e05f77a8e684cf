"""Everything that ran goes on, and what could not be paid for stops nothing.

Nothing is ranked and no hypothesis tested. Trials that the budget did not pay for are `not_run_budget`; with them alone
the stage still promotes, namely what the stage before did, so that evaluation and registration follow.
"""

from __future__ import annotations

from podium.components.study.schema import Study
from podium.components.verdicts.ranking import Arm, ranked, summaries
from podium.components.verdicts.verdict import StageResults, VariantRef, Verdict
from podium.trainer.result import Status


def if_affordable(study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
    """Promote what has a figure; where nothing could be paid for, what the stage before promoted."""
    order = ranked(arms)
    unpaid = [arm.name for arm in arms if Status.NOT_RUN_BUDGET in arm.statuses.values()]
    promoted: list[VariantRef] = [arm.variant for arm in order]
    reason = f"promote: all {len(order)} that have a result go on"
    if not promoted:
        promoted = results.previous[-1].promoted if results.previous else results.variants
        reason = f"promote: nothing of {results.stage} could be paid for, so what was there before goes on"
    notes = [f"not run, the budget did not pay for it: {', '.join(unpaid)}"] if unpaid else []
    return Verdict(
        stage=results.stage,
        policy="if_affordable",
        parameters={},
        decision="promote",
        reason=reason + (f"; {notes[0]}" if notes and order else ""),
        promoted=promoted,
        metric=study.stages[results.stage].promotion.metric,
        ranking=summaries(arms, order),
        not_chosen={arm.name: arm.why_not for arm in arms if arm.why_not},
        notes=notes,
    )
