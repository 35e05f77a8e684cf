"""What a report is made from: a run as plain data, read from its store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from podium.components.study import layout
from podium.components.study.design import Experiment, experiments
from podium.components.study.layout import TrialKey
from podium.components.study.ledger import Entry
from podium.components.study.plan import plan
from podium.components.study.run import Run
from podium.components.study.schema import Stage, Study
from podium.components.study.trials import RANKED, Trial
from podium.components.study.verdict import Arm, VariantRef, Verdict
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.errors import NotFoundError
from podium.trainer.trial.result import Point, TrialResult, curve_of, read_lines
from podium.trainer.trial.routing_metrics import Routing, routing_of

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

    def value(self, metric: str) -> float | None:
        """The final value of a metric, where the trial finished and it is finite."""
        value = getattr(self.result, metric, None) if self.status in RANKED else None
        return value if isinstance(value, float) and math.isfinite(value) else None


def arms_of(trials: Iterable[TrialData], metric: str, baseline: str = "") -> dict[str, Arm]:
    """Variant → its arm in one stage, in the trials' order; of two trials with one seed the later one counts."""
    groups: dict[str, list[TrialData]] = {}
    for trial in trials:
        groups.setdefault(trial.variant.name, []).append(trial)
    return {
        name: Arm(
            own[0].variant,
            values={trial.key.seed: value for trial in own if (value := trial.value(metric)) is not None},
            statuses={trial.key.seed: trial.status for trial in own},
            why_not="",
            is_baseline=name == baseline,
        )
        for name, own in groups.items()
    }


def means_of(trials: Iterable[TrialData], metric: str) -> dict[str, float | None]:
    """Variant → the mean over its finished seeds; None where none has the metric."""
    return {name: arm.mean if arm.n else None for name, arm in arms_of(trials, metric).items()}


@dataclass(frozen=True)
class StageData:
    """A stage as it stands."""

    name: str
    stage: Stage
    variants: tuple[VariantRef, ...] | None
    """Who takes part; None while the stage before has not decided."""
    trials: tuple[TrialData, ...] = ()
    verdict: Verdict | None = None

    def trials_of(self, variant: str) -> list[TrialData]:
        """The variant's trials in this stage."""
        return [trial for trial in self.trials if trial.variant.name == variant]


@dataclass(frozen=True)
class EvaluationData:
    """What the evaluation measured of one finalist."""

    variant: str
    metrics: dict[str, Any]
    """metrics.json: null where a field could not be measured, with the reason under `unmeasured`."""


Score = tuple[float, float | None, float | None]
"""Accuracy, its standard error and the share of the most common label, between 0 and 1."""


def smallbench_scores(metrics: Mapping[str, Any]) -> dict[str, Score]:
    """Task → its score, of the tasks that were measured."""
    scores = {}
    for field, value in metrics.items():
        if field.startswith("smallbench_") and field.endswith("_accuracy") and value is not None:
            task = field.removeprefix("smallbench_").removesuffix("_accuracy")
            stem = f"smallbench_{task}"
            scores[task] = (float(value), metrics.get(f"{stem}_stderr"), metrics.get(f"{stem}_majority"))
    scores.pop("mean", None)
    return scores


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

    @property
    def evaluated_trials(self) -> dict[str, TrialData]:
        """Variant → the trial whose model the evaluation took: the one that its checkpoint lies in, else the first with
        a model of the last stage that the variant was in."""
        chosen: dict[str, TrialData] = {}
        for evaluation in self.evaluations:
            checkpoint = str(evaluation.metrics.get("checkpoint") or "")
            named = [trial for trial in self.trials if f"/{trial.key.folder}/" in checkpoint]
            for stage in self.stages if not named else ():
                own = stage.trials_of(evaluation.variant)
                named = [trial for trial in own if trial.result and trial.result.final_model][:1] or named
            if named:
                chosen[evaluation.variant] = named[0]
        return chosen


# Reading a run from its store.

MAX_CURVES = 300
"""Trials of a stage whose metrics are read, the important first: of thousands nobody could tell the curves apart."""
_THREADS = 16
"""Reads at once: an object store answers each in tens of milliseconds."""


def collect(run: Run, *, logs: bool = False) -> ReportData:
    """Read everything that a report says; with `logs` also the last lines of those of the first stage.

    Takes a run in any state and waits for nothing. Raises StorageError.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        stages = tuple(_stage(run, name, pool, logs=logs and name == run.stages[0]) for name in run.stages)
    entries = tuple(run.ledger.entries())
    spent = sum(t.result.cost_usd or 0.0 for stage in stages for t in stage.trials if t.result and not t.reused_from)
    spent += sum(float(entry.data.get("cost_usd") or 0.0) for entry in entries if entry.kind in ("gate", "evaluation"))
    return ReportData(
        study=run.study,
        run_id=run.id,
        study_hash=run.registered.study_hash,
        trainer_digest=run.registered.trainer,
        stages=stages,
        # groups have combinations of values, not a table of each axis
        experiments=tuple(experiments(run.study)) if run.study.design != "groups" else (),
        ledger=entries,
        evaluations=tuple(_evaluations(run, stages)),
        registration=run.read_json(layout.REGISTRATION),
        shakedown=run.read_json(layout.SHAKEDOWN),
        plan=plan(run.study).to_json(),
        spent_usd=round(spent, 6),
        datasets=tuple(_datasets(run, stages)),
        store_uri=run.store_uri,
    )


def _stage(run: Run, name: str, pool: ThreadPoolExecutor, *, logs: bool) -> StageData:
    trials, reused = run.trials(name), run.reused
    results = list(pool.map(lambda trial: run.result(trial.key), trials))
    found = [
        TrialData(
            trial.key,
            trial.variant,
            result,
            config=trial.config,
            reused_from=reused.get(trial.key.name),
            group=trial.group,
        )
        for trial, result in zip(trials, results, strict=True)
    ]
    verdict = run.verdict(name)
    drawn = _drawn(run, found, verdict)
    curves = dict(zip(drawn, pool.map(lambda index: _curve(run, trials[index]), drawn), strict=True))
    tails = list(pool.map(lambda trial: log_tail(run, trial), trials)) if logs else [""] * len(trials)
    mixtures = [index for index in drawn if trials[index].config.mode == "moe"]
    routing = dict(zip(mixtures, pool.map(lambda index: _routing(run, trials[index]), mixtures), strict=True))
    whole = [
        replace(trial, curve=curves.get(i, ()), routing=routing.get(i, ()), log=tails[i])
        for i, trial in enumerate(found)
    ]
    refs = run.stage_variants(name)
    return StageData(name, run.study.stages[name], None if refs is None else tuple(refs), tuple(whole), verdict)


def _drawn(run: Run, trials: list[TrialData], verdict: Verdict | None) -> list[int]:
    """Places of the trials whose curves are read: the baseline's, promoted and killed ones first."""
    on = {variant.name for variant in verdict.promoted} if verdict else set()
    metric = run.study.stages[trials[0].key.stage].promotion.metric if trials else ""

    def importance(index: int) -> tuple[bool, bool, bool, float]:
        trial = trials[index]
        value = getattr(trial.result, metric) if trial.result else None
        name = trial.variant.name
        killed = trial.result is not None and trial.result.kill_tokens is not None
        return (
            name != run.study.baseline.variant,
            name not in on,
            not killed,
            value if value is not None else float("inf"),
        )

    known = [index for index, trial in enumerate(trials) if trial.result is not None]
    return sorted(known, key=importance)[:MAX_CURVES]


def _curve(run: Run, trial: Trial) -> tuple[Point, ...]:
    return tuple(curve_of(_lines(run, trial, '"val_loss"')))


def _lines(run: Run, trial: Trial, only: str) -> list[dict[str, Any]]:
    """The lines of a trial's metrics that contain `only`: a train line a step would make up nearly all parsing."""
    try:
        text = run.storage.read_text(f"{trial.key.folder}/metrics.jsonl")
    except NotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return read_lines("".join(f"{line}\n" for line in whole.splitlines() if only in line))


def _routing(run: Run, trial: Trial) -> tuple[Routing, ...]:
    lines = _lines(run, trial, '"router"')
    return tuple(routing for line in lines if (routing := routing_of(line)) is not None)


def log_tail(run: Run, trial: Trial) -> str:
    """The last lines of a trial's log; empty where it has none."""
    return "\n".join(run.storage.read_tail(trial.key.log))


def _evaluations(run: Run, stages: tuple[StageData, ...]) -> list[EvaluationData]:
    """The finalists' evaluations in the order of the last stage, then any other."""
    names = [key.split("/")[1] for key in run.storage.list("evaluation") if key.endswith("/metrics.json")]
    order = {variant.name: place for place, variant in enumerate(stages[-1].variants or ())}
    found = []
    for name in sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order))):
        folder = layout.evaluation_key(name)
        metrics: dict[str, Any] = run.storage.read_json(f"{folder}/metrics.json")
        found.append(EvaluationData(name, metrics))
    return found


def _datasets(run: Run, stages: tuple[StageData, ...]) -> list[DatasetData]:
    refs: dict[str, VariantRef] = {}
    for stage in stages:
        refs.update({trial.variant.name: trial.variant for trial in stage.trials})
    by_fingerprint: dict[str, list[str]] = {}
    for name, ref in refs.items():
        by_fingerprint.setdefault(run.dataset_fingerprint(ref), []).append(name)
    found = []
    for fingerprint, variants in by_fingerprint.items():
        try:
            manifest = run.store.read_json(f"{layout.data_key(fingerprint)}/manifest.json")
        except NotFoundError:
            manifest = {}
        found.append(DatasetData(fingerprint, manifest, tuple(variants)))
    return found
