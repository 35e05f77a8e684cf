"""What a report is made from: one plain picture of a run. Tables, figures and pages are pure functions of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from podium.components.study.design import Experiment
from podium.components.study.layout import TrialKey
from podium.components.study.ledger import Entry
from podium.components.study.schema import Stage, Study
from podium.components.verdicts.verdict import VariantRef, Verdict
from podium.trainer.config import TrainConfig
from podium.trainer.curve import Point
from podium.trainer.result import TrialResult
from podium.trainer.routing_metrics import Routing

PENDING = "pending"
"""Status of a trial that has no result yet."""


@dataclass(frozen=True)
class TrialData:
    """One trial, finished or not."""

    key: TrialKey
    variant: VariantRef
    result: TrialResult | None = None
    curve: tuple[Point, ...] = ()
    """Evaluations; empty where the trial has none, or where a run of very many trials leaves it out."""
    routing: tuple[Routing, ...] = ()
    """What its routers did over time, of a mixture of experts."""
    config: TrainConfig | None = None
    log: str = ""
    """The last lines of its log, where the study's layout wants them."""
    reused_from: str | None = None
    """The run whose result was taken."""
    group: str | None = None
    """The group of the study whose row it is."""

    @property
    def status(self) -> str:
        """The result's status, or `pending`."""
        return self.result.status.value if self.result else PENDING


@dataclass(frozen=True)
class StageData:
    """A stage as it stands."""

    name: str
    stage: Stage
    variants: tuple[VariantRef, ...] | None
    """Who takes part; None while the stage before has not decided."""
    trials: tuple[TrialData, ...] = ()
    verdict: Verdict | None = None


@dataclass(frozen=True)
class EvaluationData:
    """What the evaluation measured of one finalist."""

    variant: str
    metrics: dict[str, Any]
    """metrics.json: null where a field could not be measured, with the reason under `unmeasured`."""


@dataclass(frozen=True)
class DatasetData:
    """The prepared data of one or more variants."""

    fingerprint: str
    manifest: dict[str, Any]
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything that a report says about a run."""

    study: Study
    run_id: str
    study_hash: str
    stages: tuple[StageData, ...]
    experiments: tuple[Experiment, ...] = ()
    """A row for every value of every axis."""
    ledger: tuple[Entry, ...] = ()
    evaluations: tuple[EvaluationData, ...] = ()
    trainer_digest: str = ""
    """Of the trainer's sources when the run was registered."""
    registration: dict[str, Any] | None = None
    shakedown: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    """The plan as `podium plan --json` gives it."""
    spent_usd: float | None = None
    datasets: tuple[DatasetData, ...] = ()
    store_uri: str = ""

    @property
    def decided(self) -> tuple[StageData, ...]:
        """The stages that have a verdict, in order."""
        return tuple(stage for stage in self.stages if stage.verdict)

    @property
    def last_verdict(self) -> Verdict | None:
        """The newest verdict."""
        return self.decided[-1].verdict if self.decided else None

    @property
    def baseline(self) -> str:
        """Name of the variant that others are compared with."""
        return self.study.baseline.variant

    @property
    def trials(self) -> tuple[TrialData, ...]:
        """All trials of all stages."""
        return tuple(trial for stage in self.stages for trial in stage.trials)
