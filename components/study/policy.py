"""What a promotion policy is: the base class of the policies in `podium.components.policies`, one module each.

To add a policy, add one module there with one subclass of `Policy`: fields, `policy: Literal["name"] = "name"`, and
`decide`. Everything else has a default here. No other module tests for a policy's class or name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from podium.components.study.schema import TIME, Promotion, Stage, Study
from podium.components.study.verdict import Arm, ArmSummary, MoreTrials, StageResults, Verdict
from podium.trainer.trial.errors import Problem
from podium.trainer.trial.result import Status


@dataclass(frozen=True)
class ArmCount:
    """Variants that take part in a stage, the baseline included."""

    fewest: int
    most: int
    has_baseline: bool
    planned: int | None = None
    """How many there are meant to be, where that is not the most."""

    @property
    def likely(self) -> int:
        """What a plan counts."""
        return self.most if self.planned is None else self.planned


@dataclass(frozen=True)
class Conclusion:
    """What the report's headline says of a last stage, where it is no comparison of means."""

    sentence: str
    detail: str


class Policy(Promotion):
    """What a policy declares and answers. `stage` is the name of the stage that declares it."""

    # ---- what it is ----

    ranks: ClassVar[bool] = True
    """Whether it chooses between variants. If not, nothing is compared: neither by tokenizers nor against a plan."""
    needs_baseline: ClassVar[bool] = True
    """Whether the baseline needs a figure for a decision, where it takes part in the stage."""
    decides_unpaid: ClassVar[bool] = False
    """Whether it decides a stage in which the budget paid for no trial."""
    takes_any_tokenizer: ClassVar[bool] = False
    """Whether a study may use it over variants of different tokenizers by any metric."""
    ranks_axes: ClassVar[bool] = False
    """Whether its verdict names the best value of each axis (`tops`)."""
    unranked_results: ClassVar[frozenset[Status]] = frozenset()
    """Ends without a figure that are results to it: an arm with such trials is promoted unranked."""

    @property
    def by_time(self) -> bool:
        """Whether it ranks by the time to a target."""
        return self.metric == TIME

    @property
    def replaces_baseline(self) -> bool:
        """Whether it declares a figure that the variants are compared with in place of the baseline."""
        return False

    # ---- what it asks of the study around it ----

    def design_problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """Why it does not fit the study's design or the stage's place. Other checks rest on there being none."""
        return iter(())

    def problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """Why it can't work where it is declared, each with its place in the study."""
        if self.by_time:
            yield from time_problems(stage, study.stages[stage])

    # ---- what it takes ----

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """Who takes part in the next stage, given who takes part in this one.

        `axes` is how many of the study's axes are selected, all by default; `spent` caps by the budget what may be
        promoted.
        """
        return here

    def evaluated_arms(self, most: int) -> int:
        """How many arms are evaluated if this is the last stage, of `most` that may be ranked."""
        return most

    @property
    def most_pivots(self) -> int:
        """Variants that the stage may try besides."""
        return 0

    def fallback_trials(self, trials: int) -> dict[str, int]:
        """What each fallback would run besides the stage's `trials`, at most; two of them never come together."""
        return {}

    def power_warning(self, study: Study, stage: str, arms: int) -> str:
        """What a plan warns of where the stage is a proof that can hardly succeed; empty where it can."""
        return ""

    # ---- what it decides ----

    def missing_baseline(self, study: Study) -> str:
        """Why nothing can be decided if the baseline takes no part in the stage; empty where it need not."""
        return ""

    @abstractmethod
    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
        """The verdict over a stage, or the trials to run first. `arms` has at least one that can be ranked.

        A pure function, and the same for any order of the arms and outcomes. `policies.decide` adds the declared
        parameters, the counts of trials and the inputs.
        """

    def finalists(self, verdict: Verdict) -> list[ArmSummary]:
        """The arms that are evaluated if this is the last stage, best first."""
        return sorted((row for row in verdict.ranking if row.rank is not None), key=lambda row: row.rank or 0)

    def conclusion(self, verdict: Verdict, winner: str) -> Conclusion | None:
        """The report's headline if this is the last stage, where it is no comparison of means."""
        return None


def policy_of(study: Study, stage: str) -> Policy:
    """The policy that a stage declares."""
    policy = study.stages[stage].promotion
    assert isinstance(policy, Policy), f"{type(policy).__name__} declares a policy and answers nothing"
    return policy


def needs_baseline_run(study: Study, stage: str) -> bool:
    """Whether the baseline has to take part in a stage after the first for the others to be compared with it.

    Not where its figure is recorded for the stage, or where the stage's policy declares a threshold in its place.
    """
    return stage not in study.baseline.recorded and not policy_of(study, stage).replaces_baseline


def time_problems(name: str, stage: Stage) -> Iterator[Problem]:
    """A time says something only where a trial has its device to itself, and stops at its target."""
    if stage.stop.target is None:
        yield Problem(f"stages.{name}.stop.target", f"must be given: the stage ranks by {TIME}")
    resources = stage.resources
    if not resources.gpus_per_trial and resources.parallel > 1 and not resources.share_cpu:
        yield Problem(
            f"stages.{name}.resources.parallel",
            f"must be 1: the stage ranks times, and trials would share the CPU (resources.share_cpu: true says that "
            f"they may), got {resources.parallel}",
        )
