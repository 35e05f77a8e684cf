"""What a run's state is, in the words of `podium status`, and the exit code that goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from podium.components.study import layout
from podium.trainer.lease import is_live
from podium.trainer.result import Status

if TYPE_CHECKING:
    from podium.components.study.run import Run

STATES = ("running", "succeeded", "stopped", "gate_failed", "incomplete", "awaiting_approval", "cancelled")
_EXIT_CODES = {"succeeded": 0, "stopped": 3, "gate_failed": 4, "cancelled": 130}


def exit_code(state: str) -> int:
    """0 succeeded, 3 stopped by verdict, 4 gate failed, 130 cancelled, 5 for what is not concluded."""
    return _EXIT_CODES.get(state, 5)


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
