"""Trials that a stage's conductor need not start itself.

An attempt of an earlier conductor may still run (it is followed), a process that outlived its conductor may hold the
trial's folder (it is waited for), and another run of the store may have the same trial's result (it is copied).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from podium.components.launch.launcher import (
    ATTEMPT_VARIABLE,
    Attempts,
    Launcher,
    Task,
    TrialCommand,
    read_attempts,
)
from podium.components.study.layout import ATTEMPTS, LEASE, RUNS, TRIALS, run_key
from podium.components.study.run import Run
from podium.components.study.trials import Trial
from podium.trainer.trial.lease import TOKEN_VARIABLE, is_live
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.result import CONFIG, RESULT, SYNC, Status, TrialResult, read_result
from podium.trainer.trial.storage import Storage, join_uri

# Attempts of an earlier conductor, as a launcher knows them.


def trial_task(run: Run, trial: Trial, launcher: Launcher, command: TrialCommand) -> tuple[Task, Attempts, bool]:
    """The task for a trial without a result, the attempts before it, and whether it goes on already.

    An earlier conductor may have been killed with the attempt under way: written down without an end, or not yet.
    """
    folder = trial.key.folder
    before = read_attempts(run.storage, folder)
    task = replace(
        _bare_task(trial),
        argv=command(join_uri(run.uri, folder)),
        devices=run.study.stages[trial.key.stage].resources.gpus_per_trial,
        folder=folder,
        labels={"variant": trial.variant.name, "seed": str(trial.seed)},
    )
    number, seconds = len(before.attempts) + 1, 0.0
    left = launcher.left(task)
    if before.attempts and left == number - 1 and not before.attempts[-1].ended:
        seconds, number = before.attempts[-1].seconds, number - 1
        before = Attempts(attempts=before.attempts[:-1])
    # The trial takes a lease of its own folder, not a share of the run's.
    env = {ATTEMPT_VARIABLE: str(number), TOKEN_VARIABLE: ""}
    return replace(task, attempt=number, seconds=seconds, env=env), before, left == number


def goes_on(trial: Trial, launcher: Launcher) -> bool:
    """Whether an earlier launcher left an attempt at the trial."""
    return launcher.left(_bare_task(trial)) is not None


def _bare_task(trial: Trial) -> Task:
    """The task by what it is known by."""
    return Task(trial.key.name, [], trial.key.log, identity=trial.fingerprint)


class ForeignTrials:
    """Knows which of a stage's trials are trained by a process that outlived its conductor."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run, self._stage = run, stage
        self._reuse: Reuse | None = None
        self._begun: set[str] = set()
        self.trials: dict[str, Trial] = {}
        """Those that another process is training."""

    def started_here(self, trial: Trial) -> None:
        """Note that whoever holds the trial's folder from now on is ours, and has ended when we are told so."""
        self._begun.add(trial.key.name)

    def add(self, trial: Trial) -> None:
        """Note that another process trains it."""
        self.trials[trial.key.name] = trial

    def trains(self, trial: Trial) -> bool:
        """Whether another process is training it; then `over` says when it no longer does."""
        if trial.key.name not in self._begun and self._is_held(trial):
            self.add(trial)
            return True
        return False

    def take_result(self, trial: Trial) -> TrialResult | None:
        """The result that another run of the store has of the same trial, copied; None where none has."""
        self._reuse = self._reuse or Reuse(self._run, self._stage)
        return self._reuse.take(trial)

    def over(self, *, stopped: bool) -> Iterator[tuple[Trial, TrialResult | None]]:
        """Those that nobody trains any more, with their results as far as they have one; all where we have stopped."""
        for name, trial in list(self.trials.items()):
            result = read_result(self._run.storage, trial.key.folder)
            if result is not None or stopped or not self._is_held(trial):
                del self.trials[name]
                yield trial, result

    def _is_held(self, trial: Trial) -> bool:
        lease = trial.key.file(LEASE)
        return self._run.storage.exists(lease) and is_live(self._run.storage, lease)


def free_dead_lease(storage: Storage, key: str, hosts: Collection[str]) -> None:
    """Remove the lease `key` if one of these hosts, which have ended, holds it.

    On S3 a holder on another host counts as dead after 50 seconds without a heartbeat. A pod that Kubernetes has seen
    end is dead now, and a pod's host name is never another's: the next attempt need not wait for the lease to expire.
    """
    if not hosts:
        return
    holder = str(storage.read_json(key, {}).get("host", "")).partition("/")[0]
    if holder in hosts:
        storage.delete(key)


# Results of another run of the same store.

_OWN = (CONFIG, LEASE, ATTEMPTS, SYNC, RESULT)
"""What belongs to the run that trained, or is written here anew."""
_REUSABLE = (
    Status.COMPLETED,
    Status.TARGET_REACHED,
    Status.MISSED_TARGET,
    Status.KILLED,
    Status.DIVERGED,
    Status.COLLAPSED,
)
"""Ends that the config decides; a lack of memory, money or luck is not one."""


class Reuse:
    """Looks for finished trials of other runs with the same fingerprint: config, data, sources and kill reference."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run = run
        self._others: dict[str, set[str]] = {}
        # Proof trials are never another run's; their fingerprints say so as well.
        if not run.study.stages[stage].proof:
            for key in run.store.list(RUNS):
                other, _, path = key.removeprefix(f"{RUNS}/").partition("/")
                if other != run.id and path.startswith(f"{TRIALS}/") and path.endswith(f"/{RESULT}"):
                    self._others.setdefault(other, set()).add(path.removesuffix(f"/{RESULT}"))

    def take(self, trial: Trial) -> TrialResult | None:
        """Copy the trial's files from another run, its result last, with a ledger entry. None where no run has it."""
        for other in sorted(other for other, folders in self._others.items() if trial.key.folder in folders):
            source = self._run.store.child(run_key(other)).child(trial.key.folder)
            result = read_result(source)  # None of a run that is being removed
            if result is not None and result.fingerprint == trial.fingerprint and result.status in _REUSABLE:
                # The entry goes first: a copy that is cut off is begun again, and never counted as trained here.
                self._run.ledger.append("reuse", trial.key.name, run=other, fingerprint=trial.fingerprint)
                target = self._run.storage.child(trial.key.folder)
                for key in source.list():
                    if key not in _OWN:
                        copy_object(source, target, key)
                labels = self._run.run_spec(trial).labels
                result = result.model_copy(update={"labels": labels})
                target.write_json(RESULT, result.model_dump(mode="json"))
                return result
        return None


def copy_object(source: Storage, target: Storage, key: str) -> None:
    """Copy one object between storages under the same key, by way of this machine where both are remote."""
    path = source.local_path(key)
    if path is not None:
        target.upload(path, key)
        return
    with scratch_folder("copy") as scratch:
        path = scratch / "object"
        source.download(key, path)
        target.upload(path, key)
