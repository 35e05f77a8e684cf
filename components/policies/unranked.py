"""The policies that rank nothing: everything that ran is promoted, and no hypothesis is tested.

`always` promotes what has a result. `if_affordable` does so too, and what the budget did not pay for stops nothing:
where no trial could be paid, the stage promotes what the stage before did, so that evaluation and registration follow.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from podium.components.study.policy import Policy
from podium.components.study.schema import Study
from podium.components.study.verdict import Arm, StageResults, VariantRef, Verdict
from podium.components.verdicts.arms import has_unranked_result, ranked, summaries
from podium.trainer.trial.result import Status


class _Unranked(Policy):
    ranks: ClassVar[bool] = False
    unranked_results: ClassVar[frozenset[Status]] = frozenset({Status.COLLAPSED})
    """That experts collapsed is what such a stage is run to see."""

    def _promotable(self, arms: list[Arm]) -> tuple[list[Arm], list[VariantRef], str]:
        """The arms in the table's order, all that have a result, and a sentence about those that collapsed."""
        order, collapsed = ranked(arms), [arm for arm in arms if has_unranked_result(self, arm)]
        names = ", ".join(arm.name for arm in collapsed)
        sentence = f"; collapsed, which is a result: {names}" if collapsed else ""
        return order, [arm.variant for arm in [*order, *collapsed]], sentence


class Always(_Unranked):
    """Everything that ran goes on; nothing is ranked."""

    policy: Literal["always"] = "always"

    place: ClassVar[int] = 10
    takes_any_tokenizer: ClassVar[bool] = True

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
        """Promote everything that has a figure, and what collapsed; nothing rests on the order of the table."""
        order, promoted, collapsed = self._promotable(arms)
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote",
            reason=f"promote: all {len(promoted)} that have a result go on{collapsed}",
            promoted=promoted,
            metric=self.metric,
            ranking=summaries(arms, order),
            not_chosen={arm.name: arm.why_not for arm in arms if arm.why_not},
        )


class IfAffordable(_Unranked):
    """Everything that ran goes on; what could not be paid was not run, and that stops nothing."""

    policy: Literal["if_affordable"] = "if_affordable"

    place: ClassVar[int] = 40
    needs_baseline: ClassVar[bool] = False
    decides_unpaid: ClassVar[bool] = True

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict:
        """Promote what has a figure; where nothing could be paid for, what the stage before promoted."""
        order, promoted, collapsed = self._promotable(arms)
        unpaid = [arm.name for arm in arms if Status.NOT_RUN_BUDGET in arm.statuses.values()]
        notes = [f"not run, the budget did not pay for it: {', '.join(unpaid)}"] if unpaid else []
        reason = "; ".join([f"promote: all {len(promoted)} that have a result go on{collapsed}", *notes])
        if not promoted:
            promoted = results.previous[-1].promoted if results.previous else results.variants
            reason = f"promote: nothing of {results.stage} could be paid for, so what was there before goes on"
        return Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="promote",
            reason=reason,
            promoted=promoted,
            metric=self.metric,
            ranking=summaries(arms, order),
            not_chosen={arm.name: arm.why_not for arm in arms if arm.why_not},
            notes=notes,
        )
