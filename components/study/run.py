"""A run as everybody reads it: conductor, steps, report, status and CLI share this one model of the store.

Reading is cheap and never waits; what is written here is written once (the pre-registration) or last (a verdict).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from podium.components.study import layout
from podium.components.study.design import Selection, baseline, grouped_stage, is_selected, variants
from podium.components.study.layout import TrialKey
from podium.components.study.ledger import Ledger
from podium.components.study.policy import policy_of
from podium.components.study.registration import (
    Registered,
    check_unchanged,
    find_run,
    note_latest,
    prepared_key,
    read_registered,
    register_run,
)
from podium.components.study.schema import Study
from podium.components.study.trials import (
    RANKED,
    Trial,
    dataset_config,
    outcome_of,
    single_trials,
    stage_seeds,
    stage_trials,
    wave_trials,
)
from podium.components.study.verdict import (
    Amendment,
    AskedTrial,
    MoreTrials,
    StageResults,
    TrialOutcome,
    VariantRef,
    Verdict,
)
from podium.trainer.builtin.config import RunSpec
from podium.trainer.builtin.data.prepare import data_fingerprint
from podium.trainer.trial.errors import ExitCode, NotFoundError
from podium.trainer.trial.lease import is_live
from podium.trainer.trial.result import METRICS, RESULT, Status, TrialResult
from podium.trainer.trial.storage import Storage, join_uri, open_storage

# What a run's state is, in the words of `podium status`, and the exit code that goes with it.

STATES = ("running", "succeeded", "stopped", "gate_failed", "incomplete", "awaiting_approval", "cancelled")
_EXIT_CODES = {
    "succeeded": ExitCode.CONCLUDED,
    "stopped": ExitCode.STOPPED,
    "gate_failed": ExitCode.GATE_FAILED,
    "cancelled": ExitCode.INTERRUPTED,
}


def exit_code(state: str) -> ExitCode:
    """The exit code of a command that ends with the run in this state: 5 for every state that is not concluded."""
    return _EXIT_CODES.get(state, ExitCode.INCOMPLETE)


def run_state(run: Run) -> str:
    """The run's state; `running` while somebody holds its lease."""
    if is_live(run.storage, layout.LEASE):
        return "running"
    if run.storage.exists(layout.REGISTRATION):
        return "succeeded"
    if run.storage.exists(layout.CANCEL):
        return "cancelled"
    gate = run.read_json(layout.SHAKEDOWN)
    if gate is not None and not passed(gate):
        return "gate_failed"
    decisions = [verdict.decision for stage in run.stages if (verdict := run.verdict(stage)) is not None]
    if "stop" in decisions:
        return "stopped"
    return "awaiting_approval" if "await" in decisions else "incomplete"


def passed(gate: dict[str, Any]) -> bool:
    """Whether a shakedown's record says that it passed."""
    return bool(gate.get("passed"))


def status_of(run: Run) -> dict[str, Any]:
    """The object that `podium status --json` prints."""
    registration = run.read_json(layout.REGISTRATION)
    champion = None
    if registration is not None:
        champion = {name: registration.get(name) for name in ("variant", "proven", "alias", "metric", "value")}
    return {
        "study": run.study.name,
        "run_id": run.id,
        "state": run.state(),
        "stages": [_stage(run, stage) for stage in run.stages],
        "waiting": run.waiting(),
        "champion": champion,
    }


def _stage(run: Run, stage: str) -> dict[str, Any]:
    trials = run.trials(stage)
    statuses = [result.status for trial in trials if (result := run.result(trial.key)) is not None]
    verdict = run.verdict(stage)
    return {
        "name": stage,
        "trials": len(trials),
        "finished": len(statuses),
        "killed": statuses.count(Status.KILLED),
        "broken": statuses.count(Status.BROKEN),
        "decision": verdict.decision if verdict is not None else None,
    }


__all__ = ["Run", "Trial", "exit_code"]

_TAIL_BYTES = 4096


class Run:
    """One execution of a study in a store."""

    def __init__(self, store_uri: str, registered: Registered) -> None:
        self.store_uri = store_uri
        self.store: Storage = open_storage(store_uri)
        self.id = registered.run_id
        self.study: Study = registered.study
        self.registered = registered
        self.storage = self.store.child(layout.run_key(self.id))
        self.ledger = Ledger(self.storage)
        self._results: dict[TrialKey, tuple[str, TrialResult]] = {}
        self._trials: dict[tuple[str, str], list[Trial]] = {}
        self._asked: dict[str, list[Trial]] = {}
        """Ledger entry → the trials that it asked for."""

    @classmethod
    def create(
        cls,
        store_uri: str,
        study: Study,
        profile: str | None = None,
        selection: Selection | None = None,
        submitted_text: str = "",
        *,
        new: bool = False,
    ) -> Self:
        """The run of this study in this store: the one that is there, or a new one; `new` always makes another.

        Writes the pre-registration, `study.yaml`, and the ledger's first entry, once. Raises UserError for a store or a
        corpus that can't serve, and where a trial of the run was made from another config, other data or other sources
        than would be used now.
        """
        registered = register_run(store_uri, study, submitted_text, new=new)
        run = cls(store_uri, registered)
        check_unchanged(run.storage, run.known_trials(), registered)
        note_latest(run.store, run.id)
        run.ledger.append(
            "run_started",
            run.id,
            profile=profile or study.profile,
            study_hash=registered.study_hash,
            datasets=sorted(registered.datasets.values()),
            selection=(selection or Selection()).to_json(),
        )
        return run

    @classmethod
    def open(cls, store_uri: str, run_id: str | None = None) -> Self:
        """A run that is there: by id, or the one that was started last; or the URI of a run's own folder.

        Raises UserError where there is none.
        """
        store_uri, run_id = find_run(store_uri, run_id)
        return cls(store_uri, read_registered(open_storage(store_uri), run_id))

    @cached_property
    def uri(self) -> str:
        """The run's folder."""
        return join_uri(self.store_uri, layout.run_key(self.id))

    # ---- data ----

    def dataset_fingerprint(self, variant: VariantRef) -> str:
        """Identity of the dataset that the variant is trained on."""
        config = dataset_config(self.study, variant)
        return self.registered.datasets.get(prepared_key(config)) or data_fingerprint(config)

    def dataset_uri(self, variant: VariantRef) -> str:
        """Folder of that dataset."""
        return join_uri(self.store_uri, layout.data_key(self.dataset_fingerprint(variant)))

    # ---- stages and trials ----

    @property
    def stages(self) -> list[str]:
        """The stages' names, in order."""
        return list(self.study.stages)

    def stage_variants(self, stage: str) -> list[VariantRef] | None:
        """Who takes part in a stage: the design's variants, later those that the verdict before promoted.

        None if that is not decided yet; empty if nothing was promoted.
        """
        index = self.stages.index(stage)
        if stage == grouped_stage(self.study):
            firsts = {asked.variant.name: asked.variant for asked in self._first_wave(stage)}
            return list(firsts.values())
        if index == 0:
            return variants(self.study)
        before = self.verdict(self.stages[index - 1])
        if before is None or before.decision == "await":
            return None
        return before.promoted if before.decision == "promote" else []

    def trials(self, stage: str, selection: Selection | None = None) -> list[Trial]:
        """The trials of a stage, seed by seed, the baseline first, then those that its policy asked for besides.

        Empty if it is not known who takes part. A baseline with a recorded figure for the stage is not run.
        `selection` leaves out variants.
        """
        if selection is not None and selection.stages is not None and stage not in selection.stages:
            return []
        refs = self.stage_variants(stage)
        if refs is None:
            return []
        memo = (stage, json.dumps([ref.name for ref in refs]))
        if memo not in self._trials:
            grouped = stage == grouped_stage(self.study)
            made = self._singles(stage, self._first_wave(stage)) if grouped else self._make_trials(stage, refs)
            self._trials[memo] = list(made)
        made = [*self._trials[memo], *self._asked_trials(stage, self._trials[memo])]
        if selection is None or not selection.is_part:
            return made
        base = baseline(self.study)
        return [trial for trial in made if is_selected(self.study, trial.variant, selection, base)]

    def _asked_trials(self, stage: str, declared: list[Trial]) -> list[Trial]:
        found: dict[TrialKey, Trial] = {}
        for entry in self.ledger.entries("more_trials"):
            if entry.data["stage"] == stage:
                if entry.id not in self._asked:
                    self._asked[entry.id] = self.asked_trials(stage, MoreTrials.model_validate(entry.data["asked"]))
                found |= {trial.key: trial for trial in self._asked[entry.id]}
        known = {trial.key for trial in declared} if found else set()
        return [trial for key, trial in found.items() if key not in known]

    def asked_trials(self, stage: str, answer: MoreTrials) -> list[Trial]:
        """The trials that a `MoreTrials` answer asks for."""
        return [*self._make_trials(stage, answer.variants, answer.seeds), *self._singles(stage, answer.trials)]

    def known_trials(self) -> Iterator[Trial]:
        """The trials of every stage whose variants are known."""
        for stage in self.stages:
            yield from self.trials(stage)

    def run_spec(self, trial: Trial, *, watch: str | None = None) -> RunSpec:
        """What the trainer is started with: `config.json` of the trial's folder."""
        alone = len(stage_seeds(self.study, trial.key.stage)) == 1
        return RunSpec(
            config=trial.config,
            dataset=trial.dataset_uri,
            fingerprint=trial.fingerprint,
            # with several seeds the conductor judges the arm's mean; the trainer would judge one seed
            reference_curves=[join_uri(self.uri, key.folder) for key in trial.references] if alone else [],
            continues=trial.continues.fingerprint if trial.continues is not None else None,
            start_checkpoint=self._start_checkpoint(trial),
            watch=watch,
            question=self.study.question,
            labels={
                "study": self.study.name,
                "run_id": self.id,
                "stage": trial.key.stage,
                "variant": trial.variant.name,
                "seed": str(trial.seed),
            },
        )

    # ---- results ----

    def result(self, key: TrialKey) -> TrialResult | None:
        """The trial's result, or None while it has none."""
        name = key.file(RESULT)
        try:
            stamp = self.storage.stamp(name)
            known = self._results.get(key)
            if known is None or known[0] != stamp:
                known = (stamp, TrialResult.model_validate_json(self.storage.read_bytes(name)))
                self._results[key] = known
        except NotFoundError:
            return None
        return known[1]

    def outcome(self, trial: Trial, result: TrialResult) -> TrialOutcome:
        """What a verdict needs of a result, by the stage's metric."""
        reused = self.reused.get(trial.key.name)
        metric = self.study.stages[trial.key.stage].promotion.metric
        tokenizer = self.dataset_fingerprint(trial.variant)
        return outcome_of(trial.variant.name, result, metric, tokenizer, reused, trial.key.fallback)

    @property
    def reused(self) -> dict[str, str]:
        """Trial → the run whose result it took."""
        return {entry.key: str(entry.data["run"]) for entry in self.ledger.entries("reuse")}

    def results(self, stage: str, selection: Selection | None = None) -> StageResults:
        """A stage as it stands."""
        index = self.stages.index(stage)
        trials = self.trials(stage, selection)
        reused = self.reused
        metric = self.study.stages[stage].promotion.metric
        tokenizers = {
            ref.name: self.dataset_fingerprint(ref) for ref in {t.variant.name: t.variant for t in trials}.values()
        }
        outcomes = []
        for trial in trials:
            result = self.result(trial.key)
            if result is not None:
                name = trial.variant.name
                taken, fallback = reused.get(trial.key.name), trial.key.fallback
                outcomes.append(outcome_of(name, result, metric, tokenizers[name], taken, fallback))
        asked = [entry.data["asked"] for entry in self.ledger.entries("more_trials") if entry.data["stage"] == stage]
        refs = self.stage_variants(stage) or []
        names = {ref.name for ref in refs}
        refs = [*refs, *{t.variant.name: t.variant for t in trials if t.variant.name not in names}.values()]
        if selection is not None:
            base = baseline(self.study)
            refs = [ref for ref in refs if is_selected(self.study, ref, selection, base)]
        amendments = self.amendments(stage)
        return StageResults(
            stage=stage,
            variants=refs,
            seeds=[*stage_seeds(self.study, stage), *(seed for each in amendments for seed in each.seeds)],
            outcomes=outcomes,
            spent_usd=self.spent_usd(),
            previous=[verdict for name in self.stages[:index] if (verdict := self.verdict(name)) is not None],
            amendments=amendments,
            asked=[MoreTrials.model_validate(each) for each in asked],
        )

    def is_complete(self, stage: str) -> bool:
        """Whether it is known who takes part in a stage and every one of its trials has a result."""
        if self.stage_variants(stage) is None:
            return False
        return all(self.storage.exists(trial.key.file(RESULT)) for trial in self.trials(stage))

    def trial_progress(self, key: TrialKey) -> dict[str, Any] | None:
        """The last line of the trial's metrics, read from the file's end where it is on this machine."""
        try:
            text = self.storage.read_end(key.file(METRICS), _TAIL_BYTES).decode(errors="replace")
        except NotFoundError:
            return None
        whole = text.split("\n")[:-1]  # a line that is being written has no end yet
        if not whole or not whole[-1].startswith("{"):
            return None
        line: dict[str, Any] = json.loads(whole[-1])
        return line

    # ---- decisions ----

    def verdict(self, stage: str) -> Verdict | None:
        """The stage's verdict, or None while there is none."""
        try:
            return Verdict.model_validate_json(self.storage.read_bytes(layout.verdict_key(stage)))
        except NotFoundError:
            return None

    def write_verdict(self, verdict: Verdict) -> None:
        """Write a stage's verdict and its ledger entry."""
        amendments = verdict.results.amendments if verdict.results is not None else []
        for taken in verdict.fallbacks:
            key = f"{verdict.stage}/{taken.name}"
            self.ledger.append("fallback", key, stage=verdict.stage, reason=taken.reason, numbers=taken.numbers)
        self.ledger.append(
            "verdict",
            # a stage is decided once, and once more after each amendment
            "/".join([verdict.stage, verdict.decision, *([str(len(amendments))] if amendments else [])]),
            decision=verdict.decision,
            reason=verdict.reason,
            promoted=[ref.name for ref in verdict.promoted],
            winner=verdict.winner,
            claim=verdict.claim,
            not_chosen=verdict.not_chosen,
        )
        self.storage.write_json(layout.verdict_key(verdict.stage), verdict.model_dump(mode="json"))

    def amendments(self, stage: str) -> list[Amendment]:
        """What people changed about a stage after the plan was fixed, in order."""
        entries = [entry for entry in self.ledger.entries("amendment") if entry.data["stage"] == stage]
        return [Amendment.model_validate(entry.data["amendment"]) for entry in entries]

    def read_json(self, key: str) -> Any | None:
        """An object of the run's folder, or None where it is not there."""
        return self.storage.read_json(key, None)

    def waiting(self) -> dict[str, str]:
        """What trials that were started wait for, by name; empty where all run, and while nobody conducts them."""
        return (self.read_json(layout.WAITING) or {}) if self.storage.exists(layout.LEASE) else {}

    def spent_usd(self) -> float:
        """Money spent so far: every trial's, lost attempts included, and what shakedown and evaluation cost."""
        spent, reused = 0.0, self.reused
        for trial in self.known_trials():
            result = None if trial.key.name in reused else self.result(trial.key)
            spent += (result.cost_usd or 0.0) if result is not None else 0.0
        for entry in self.ledger.entries():
            if entry.kind in ("gate", "evaluation"):
                spent += float(entry.data.get("cost_usd") or 0.0)
        return round(spent, 6)

    def state(self) -> str:
        """`running succeeded stopped gate_failed incomplete awaiting_approval` or `cancelled`."""
        return run_state(self)

    def status(self) -> dict[str, Any]:
        """What `podium status --json` prints."""
        return status_of(self)

    def _first_wave(self, stage: str) -> list[AskedTrial]:
        return wave_trials(self.study, stage, 0, {}, [])

    def _singles(self, stage: str, asked: list[AskedTrial]) -> list[Trial]:
        data = {each.variant.name: self.dataset_fingerprint(each.variant) for each in asked}
        made = single_trials(self.study, stage, asked, data=data, run_id=self.id, store_uri=self.store_uri)
        return list(made)

    def _start_checkpoint(self, trial: Trial) -> str | None:
        """URI of the checkpoint that a trial goes on from; None from the start, also where there is no checkpoint."""
        before = trial.continues
        result = None if before is None else self.result(before.key)
        if before is None or result is None or result.last_checkpoint is None:
            return None
        key = f"{before.key.folder}/{result.last_checkpoint}"
        return join_uri(self.uri, key) if self.storage.exists(key) else None

    def _make_trials(self, stage: str, refs: list[VariantRef], seeds: list[int] | None = None) -> Iterator[Trial]:
        data = {ref.name: self.dataset_fingerprint(ref) for ref in refs}
        return stage_trials(self.study, stage, refs, seeds=seeds, data=data, run_id=self.id, store_uri=self.store_uri)


# The finalists of a run: the arms of its last verdict that ran to the end, each with the model that stands for it.


@dataclass(frozen=True)
class Finalist:
    """A variant, and its first seed that ran to the end: the model that is evaluated and registered."""

    variant: str
    trial: Trial
    result: TrialResult
    model_key: str
    """The weights (`….safetensors`, its `.json` beside it), relative to the trial's folder."""

    @property
    def loss(self) -> float | None:
        """The declared evaluation of these very weights, in nats."""
        is_final = self.model_key == self.result.final_model
        return self.result.final_val_loss if is_final else self.result.best_val_loss

    def model_uri(self, run: Run) -> str:
        """URI of the weights."""
        return join_uri(run.uri, self.trial.key.folder, self.model_key)


def _model(run: Run, result: TrialResult) -> str | None:
    return result.best_model if run.study.champion.model == "best" else result.final_model


def last_verdict(run: Run) -> Verdict | None:
    """The verdict of the last stage, or of the one that the study's champion is of; None while there is none."""
    return run.verdict(run.study.champion.stage or run.stages[-1])


def finalists(run: Run) -> list[Finalist]:
    """The ranked arms of the last verdict, best first; empty while there is none. Of a race to a target, the winners.

    A baseline whose figure was recorded elsewhere has no model and is left out.
    """
    verdict = last_verdict(run)
    if verdict is None:
        return []
    found: dict[str, Finalist] = {}
    for trial in run.trials(verdict.stage):
        result = run.result(trial.key)
        name = trial.variant.name
        # the one that went on from the first seed's stands for it
        wanted = name not in found or (trial.key.fallback is not None and trial.seed == found[name].trial.seed)
        if wanted and result is not None and result.status in RANKED and result.final_model is not None:
            found[name] = Finalist(name, trial, result, _model(run, result) or result.final_model)
    ranked = policy_of(run.study, verdict.stage).finalists(verdict)
    return [found[row.variant] for row in ranked if row.variant in found]
