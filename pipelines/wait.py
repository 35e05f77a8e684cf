"""Following a run on Kubeflow to its end, and starting it again where infrastructure, and nothing else, ended it.

A step that refuses a user's input or fails by a foreseen error leaves its words in the store
(`components.study.layout`); one that was killed, evicted or lost with its machine leaves none. A verdict that stops a
study is no failure at all. So what is retried is a step that said nothing, or that could not reach its store; Kubeflow
then runs the failed step again, and the step finds what is finished and redoes none of it.

KFP's own `set_retry` does nothing of the kind: under its shipped manifests a step that exits non-zero is not retried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from podium.components.study import layout
from podium.components.study.layout import StepFailure, failure_of, run_of
from podium.components.study.run import exit_code
from podium.pipelines.kubeflow.api import Kubeflow, KubeflowError, KubeflowRun, UnreachableError
from podium.trainer.trial.errors import ExitCode, PodiumError
from podium.trainer.trial.storage import Storage, open_storage

if TYPE_CHECKING:
    from podium.components.study.run import Run

POLL_SECONDS = 5.0
OUTAGE_SECONDS = 600.0
"""How long Kubeflow may be away before waiting ends; the run itself goes on without anybody waiting."""
RETRY_START_SECONDS = 120.0
"""How long Kubeflow may take to take a retry up."""

Look = Callable[[KubeflowRun, "Run | None"], None]


@dataclass(frozen=True)
class RunOutcome:
    """How a run on Kubeflow ended."""

    run_id: str | None
    """Our run; None where it was not made, or its store can't be read from here."""
    state: str
    """The run's state in our words (`succeeded`, `stopped`, …), or Kubeflow's where ours is not known."""
    reason: str
    """Why, in a sentence; empty where the run's verdicts say it."""
    retries: int
    exit_code: ExitCode
    """As of `podium run`."""


def wait(
    kubeflow: Kubeflow,
    kubeflow_run: str,
    store: str,
    *,
    retries: int = 0,
    look: Look | None = None,
    event: Callable[[str], None] = lambda line: None,
    poll_seconds: float | None = None,
) -> RunOutcome:
    """Follow a run to its end, retrying it at most `retries` times after a failure of infrastructure.

    `look` is called with what is found at every look, `event` with each thing that happens. Raises UserError where
    Kubeflow no longer lets us ask (an expired token) or is away for ten minutes; the run goes on all the same.
    """
    run_store = RunStore(store, kubeflow_run)
    poll_seconds = POLL_SECONDS if poll_seconds is None else poll_seconds
    done = 0
    while True:
        found = _ask(kubeflow, kubeflow_run, event, poll_seconds)
        if look is not None:
            look(found, run_store.run())
        if not found.has_ended:
            time.sleep(poll_seconds)
            continue
        failure = run_store.failure() if found.state == "FAILED" else None
        if not _is_infrastructure(found, failure, run_store) or done >= retries:
            return _finished(found, failure, run_store, done)
        done += 1
        event(f"{_lost(found, failure)}; retry {done} of {retries}: what is finished is not run again")
        kubeflow.retry(kubeflow_run)
        _await_retry(kubeflow, found, event, poll_seconds)


class RunStore:
    """The run's store, as far as it can be read from here."""

    def __init__(self, store: str, kubeflow_run: str) -> None:
        self._kubeflow_run = kubeflow_run
        self._run: Run | None = None
        self.problem = ""
        """Why the store can't be read; empty where it can."""
        try:
            self._storage: Storage | None = open_storage(store)
        except PodiumError as error:
            self._storage, self.problem = None, str(error)

    def run(self) -> Run | None:
        """Our run, once prepare_data has made it."""
        if self._run is None and self._storage is not None:
            try:
                run_id = run_of(self._storage, self._kubeflow_run)
                if run_id is not None:
                    from podium.components.study.run import Run

                    self._run = Run.open(self._storage.uri, run_id)
                self.problem = ""
            except PodiumError as error:
                self.problem = str(error)
        return self._run

    def failure(self) -> StepFailure | None:
        """What the failed step said."""
        if self._storage is None:
            return None
        try:
            return failure_of(self._storage, self._kubeflow_run)
        except PodiumError as error:
            self.problem = str(error)
            return None

    def is_cancelled(self) -> bool:
        """Whether somebody asked our run to stop."""
        run = self.run()
        return run is not None and run.storage.exists(layout.CANCEL)


def _ask(kubeflow: Kubeflow, run_id: str, event: Callable[[str], None], poll_seconds: float) -> KubeflowRun:
    """The run as it stands; a Kubeflow that is away for a while is waited for."""
    away_since: float | None = None
    while True:
        try:
            found = kubeflow.run(run_id)
        except (UnreachableError, KubeflowError) as error:
            now = time.monotonic()
            if away_since is None:
                event(f"{error}; the run goes on, waiting for Kubeflow")
                away_since = now
            if now - away_since > OUTAGE_SECONDS:
                raise
            time.sleep(poll_seconds)
            continue
        if away_since is not None:
            event("Kubeflow answers again")
        return found


def _is_infrastructure(found: KubeflowRun, failure: StepFailure | None, run_store: RunStore) -> bool:
    if found.state != "FAILED" or found.was_cancelled or run_store.is_cancelled():
        return False
    # a crash is a bug of ours or a library's: deterministic, so that trying again would only cost
    return failure is None or failure.kind == "failed"


def _await_retry(kubeflow: Kubeflow, before: KubeflowRun, event: Callable[[str], None], poll_seconds: float) -> None:
    """Wait until Kubeflow has taken the retry up: until then it still says FAILED."""
    deadline = time.monotonic() + RETRY_START_SECONDS
    while time.monotonic() < deadline:
        found = _ask(kubeflow, before.id, event, poll_seconds)
        if found.state != "FAILED" or found.changes > before.changes:
            return
        time.sleep(min(poll_seconds, 1.0))


def _finished(found: KubeflowRun, failure: StepFailure | None, run_store: RunStore, retries: int) -> RunOutcome:
    run = run_store.run()
    if found.was_cancelled or run_store.is_cancelled():
        return RunOutcome(run.id if run else None, "cancelled", "the run was cancelled", retries, ExitCode.INTERRUPTED)
    if found.state == "FAILED":
        state = run.state() if run is not None else "failed"
        if failure is not None and failure.kind == "user":
            return RunOutcome(run.id if run else None, state, failure.message, retries, ExitCode.USER_ERROR)
        reason = f"{_lost(found, failure)}{_unread(run_store)}; podium submit the same again goes on from here"
        return RunOutcome(run.id if run else None, state, reason, retries, ExitCode.INCOMPLETE)
    if run is not None:
        return RunOutcome(run.id, run.state(), "", retries, exit_code(run.state()))
    # Kubeflow's SUCCEEDED says that no step failed; only the last one tells that a model was registered
    registered = any(each.name.lower() == "register" and each.state == "SUCCEEDED" for each in found.tasks)
    reason = f"every step that ran has succeeded{_unread(run_store)}"
    code = ExitCode.CONCLUDED if registered else ExitCode.INCOMPLETE
    return RunOutcome(None, found.state.lower(), reason, retries, code)


def _lost(found: KubeflowRun, failure: StepFailure | None) -> str:
    if failure is not None:
        return f"{failure.step} failed: {failure.message}"
    failed = [each for each in found.tasks if each.state == "FAILED" and not each.name.endswith("-driver")]
    said = next((each.said for each in failed if each.said), found.said)
    names = ", ".join(dict.fromkeys(each.name for each in failed)) or "a step"
    return f"{names} was lost{f': {said}' if said else ' and said nothing: killed, evicted or its node gone'}"


def _unread(run_store: RunStore) -> str:
    return f" (the store can't be read from here: {run_store.problem})" if run_store.problem else ""
