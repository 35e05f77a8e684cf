"""What a run is doing, read from its store alone: the same for the process that runs it and for one that looks on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from podium.components.study import layout

if TYPE_CHECKING:
    from podium.components.study.ledger import Entry
    from podium.components.study.run import Run, Trial

WORDS = {
    "run_started": "started {}",
    "gate": "shakedown",
    "trial_ended": "ended {}",
    "kill": "killed {}",
    "trial_restarted": "restarted {}",
    "more_trials": "more trials {}",
    "registration": "registered {}",
    "report": "report built",
}
"""Kind of a ledger entry → how a line about it begins; other kinds say themselves."""


@dataclass(frozen=True)
class StageCount:
    """A stage's trials, counted."""

    name: str
    trials: int
    """0 while it is not known who takes part."""
    finished: int
    running: int
    killed: int
    broken: int
    decision: str | None
    known: bool = True
    """Whether it is known who takes part."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial that holds a lease on its folder now."""

    name: str
    tokens: int
    total_tokens: int
    loss: float | None
    """Nats per token: the last training loss, or the validation loss where that was the last line."""
    tokens_per_second: float | None
    seconds_left: float | None
    """By the training clock; evaluations come on top."""


@dataclass(frozen=True)
class Snapshot:
    """The run at one moment."""

    doing: str
    """What goes on, in a few words: `preparing data`, `ranking: training`, …"""
    stages: tuple[StageCount, ...]
    running: tuple[RunningTrial, ...]
    spent_usd: float
    budget_usd: float | None
    waiting: tuple[str, ...] = ()
    """What trials that were started wait for, one reason each with how many wait for it."""


def take(run: Run) -> Snapshot:
    """Read the run's store."""
    stages, running = [], []
    for stage in run.stages:
        trials = run.trials(stage)
        statuses = [result.status.value for trial in trials if (result := run.result(trial.key)) is not None]
        verdict = run.verdict(stage)
        active = [] if verdict is not None else [trial for trial in trials if _is_running(run, trial)]
        running += [_running(run, trial) for trial in active]
        stages.append(
            StageCount(
                name=stage,
                trials=len(trials),
                finished=len(statuses),
                running=len(active),
                killed=statuses.count("killed"),
                broken=statuses.count("broken"),
                decision=verdict.decision if verdict is not None else None,
                known=run.stage_variants(stage) is not None,
            )
        )
    doing, waiting = _doing(run, stages), tuple(reasons(run.waiting()))
    return Snapshot(doing, tuple(stages), tuple(running), run.spent_usd(), run.study.budget.usd, waiting)


def reasons(waiting: Mapping[str, str]) -> list[str]:
    """What trials wait for: one line a reason, which names the trial that waits for it, or says how many do."""
    names: dict[str, list[str]] = {}
    for name, why in waiting.items():
        names.setdefault(why, []).append(name)
    return [f"{found[0] if len(found) == 1 else f'{len(found)} trials'}: {why}" for why, found in names.items()]


def sentence(entry: Entry) -> str:
    """A ledger entry as one line."""
    data: dict[str, Any] = entry.data
    said = data.get("reason") or data.get("decision") or data.get("outcome") or data.get("status") or ""
    if entry.kind == "verdict":
        return f"verdict of {entry.key.partition('/')[0]}: {said}"
    words = WORDS.get(entry.kind, f"{entry.kind} {{}}").format(entry.key)
    return f"{words}{': ' if said else ''}{said}"


def _is_running(run: Run, trial: Trial) -> bool:
    folder = trial.key.folder
    return run.storage.exists(f"{folder}/{layout.LEASE}") and not run.storage.exists(f"{folder}/result.json")


def _running(run: Run, trial: Trial) -> RunningTrial:
    line = run.trial_progress(trial.key) or {}
    tokens, seconds = int(line.get("tokens") or 0), float(line.get("train_seconds") or 0.0)
    speed = tokens / seconds if seconds > 0 else None
    return RunningTrial(
        name=trial.key.name,
        tokens=tokens,
        total_tokens=trial.config.tokens,
        loss=line.get("val_loss", line.get("train_loss")),
        tokens_per_second=speed,
        seconds_left=(trial.config.tokens - tokens) / speed if speed else None,
    )


def _doing(run: Run, stages: list[StageCount]) -> str:
    gate = run.read_json(layout.SHAKEDOWN)
    if gate is None:
        data = {run.dataset_fingerprint(variant) for variant in run.stage_variants(run.stages[0]) or []}
        prepared = all(run.store.exists(f"{layout.data_key(fingerprint)}/manifest.json") for fingerprint in data)
        return "shakedown" if prepared else "preparing data"
    for stage in stages:
        if stage.decision is None:
            return f"{stage.name}: {'selecting' if stage.known and stage.finished >= stage.trials else 'training'}"
        if stage.decision != "promote":
            return f"{stage.name}: {stage.decision}"
    if run.storage.exists(layout.REGISTRATION):
        return "reporting"
    return "evaluating and registering"
