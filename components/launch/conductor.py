"""A stage's conductor: starts its trials, follows them, and ends when each has a result.

It may be killed at any instant. All that it knows lies in the store: a trial with a result is done, one without is
started (and resumes by itself), and what it writes besides (costs, judgements, ledger entries) is computed from files
and keyed, so that doing it again changes nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from podium.components.launch.launcher import (
    ATTEMPT_VARIABLE,
    BEAT_SECONDS,
    RUN_AGAIN,
    USER_ERROR,
    Attempt,
    Attempts,
    Ended,
    Launcher,
    Task,
    TrialCommand,
    WaitingNotes,
    read_attempts,
    trial_command,
    write_attempts,
)
from podium.components.launch.records import METRICS, Judge, Records, Ruling, read_curve, read_result
from podium.components.launch.tracker import Tracker
from podium.components.policies.decide import decide
from podium.components.study.cost import run_usd
from podium.components.study.design import Selection
from podium.components.study.layout import CANCEL, LEASE, RUNS, TrialKey, run_key
from podium.components.study.run import Run
from podium.components.study.trials import Trial, stage_seeds
from podium.components.verdicts.verdict import MoreTrials
from podium.trainer.trial.errors import InUseError, NotFoundError, UserError
from podium.trainer.trial.lease import TOKEN_VARIABLE, Lease, is_live
from podium.trainer.trial.process import scratch_folder
from podium.trainer.trial.result import Point, Status, TrialResult
from podium.trainer.trial.stopping import Kill
from podium.trainer.trial.storage import Storage, join_uri

# From a trial to the task that a launcher starts: its next attempt, or one of an earlier conductor that goes on.


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


# Screening results that another run of the same store has already paid for.

RESULT = "result.json"
_OWN = ("config.json", "lease.json", "attempts.json", "sync.json", RESULT)
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
                if other != run.id and path.startswith("trials/") and path.endswith(f"/{RESULT}"):
                    self._others.setdefault(other, set()).add(path.removesuffix(f"/{RESULT}"))

    def take(self, trial: Trial) -> TrialResult | None:
        """Copy the trial's files from another run, its result last, with a ledger entry. None where no run has it."""
        for other in sorted(other for other, folders in self._others.items() if trial.key.folder in folders):
            source = self._run.store.child(run_key(other)).child(trial.key.folder)
            try:
                result = TrialResult.model_validate_json(source.read_bytes(RESULT))
            except NotFoundError:  # a run that is being removed
                continue
            if result.fingerprint == trial.fingerprint and result.status in _REUSABLE:
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


# Trials that a conductor need not start: another process trains them, or another run has paid for them.


class Elsewhere:
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
            result = read_result(self._run.storage, trial.key)
            if result is not None or stopped or not self._is_held(trial):
                del self.trials[name]
                yield trial, result

    def _is_held(self, trial: Trial) -> bool:
        lease = f"{trial.key.folder}/{LEASE}"
        return self._run.storage.exists(lease) and is_live(self._run.storage, lease)


# The curves of a stage's trials as last read: running arms are looked at every few seconds.


class Curves:
    """Reads a trial's curve again only where its metrics have changed."""

    def __init__(self, storage: Storage) -> None:
        """`storage` is the run's."""
        self._storage = storage
        self._known: dict[TrialKey, tuple[str, list[Point]]] = {}

    def read(self, key: TrialKey) -> list[Point]:
        """The evaluations of a trial so far; none where it has not measured anything yet."""
        try:
            stamp = self._storage.stamp(f"{key.folder}/{METRICS}")
        except NotFoundError:
            return []
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            known = self._known[key] = (stamp, read_curve(self._storage, key.folder))
        return known[1]

    def forget(self, key: TrialKey) -> None:
        """Keep nothing of a trial that is judged."""
        self._known.pop(key, None)


# A trial's lease whose holder is known to have ended: removed, so that the next attempt need not wait it out.
#
# On S3 a holder on another host is dead only after its counter has stood still for 50 seconds. But a pod that
# Kubernetes has seen end is dead now, and a pod's host name is never another's.


def free_dead_lease(storage: Storage, key: str, hosts: Collection[str]) -> None:
    """Remove the lease `key` if one of these hosts, which have ended, holds it."""
    if not hosts:
        return
    with suppress(NotFoundError):
        holder = str(storage.read_json(key)["host"]).partition("/")[0]
        if holder in hosts:
            storage.delete(key)


# The loop of a stage's conductor: what is started when, what follows from an end, what is looked at meanwhile.

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 60.0
"""Wait before a trial's first restart, doubled each time up to the longest."""
STOP_GRACE_SECONDS = 60.0
"""Time for a trial to save when it is told to end."""
_FAILED = (Status.DIVERGED, Status.COLLAPSED, Status.OUT_OF_MEMORY, Status.BROKEN)
"""Ends of a baseline's trial that leave nothing to compare with."""


@dataclass(frozen=True)
class Conducted:
    """How a stage's conductor ended."""

    trials: int
    finished: int
    """Trials that have a result."""
    stopped: str = ""
    """Why trials were left without a result; empty where none was."""
    cancelled: bool = False


@dataclass
class _Live:
    trial: Trial
    before: Attempts
    """The attempts before this one."""
    beat: float
    """When this attempt's time was last written down."""


class StageLoop:
    """Starts a stage's trials, takes in how they end, and looks around in between."""

    def __init__(
        self,
        run: Run,
        stage: str,
        launcher: Launcher,
        selection: Selection,
        command: TrialCommand,
        beat_seconds: float,
        lease: Lease,
    ) -> None:
        self._run, self._stage, self._launcher, self._selection = run, stage, launcher, selection
        self._declared = run.study.stages[stage]
        self._baseline = run.study.baseline.variant
        self._command, self._beat_seconds, self._lease = command, beat_seconds, lease
        self._records = Records(run, stage)
        self._curves = Curves(run.storage)
        recorded = stage in run.study.baseline.recorded
        self._judge = Judge(
            None if recorded else self._declared.stop.kill,
            stage,
            self._baseline,
            stage_seeds(run.study, stage),
            self._curves.read,
        )
        self._elsewhere = Elsewhere(run, stage)
        self._trials: dict[str, Trial] = {}
        self._waiting: deque[Trial] = deque()
        self._later: list[tuple[float, Trial]] = []
        """Trials to be started again, and when."""
        self._live: dict[str, _Live] = {}
        self._baselines_failed = 0
        self._stopped = ""
        self._cancelled = False
        self._looked = 0.0
        self._notes = WaitingNotes(run.storage)
        self._spent = run.spent_usd()

    def conduct(self) -> Conducted:
        """The stage, from where it stands to its end."""
        self._settle(self._run.trials(self._stage, self._selection))
        while not self._stopped and not self._selection.is_part:
            answer = decide(self._run.study, self._run.results(self._stage))
            if not isinstance(answer, MoreTrials):
                break
            asked = self._run.asked_trials(self._stage, answer)
            more = [trial for trial in asked if trial.key.name not in self._trials]
            assert more, f"stage {self._stage} has every trial that its policy asks for: {answer.reason}"
            self._records.more_trials(answer)
            self._settle(more)
        self._notes.tell({})
        finished = sum(self._run.storage.exists(f"{trial.key.folder}/result.json") for trial in self._trials.values())
        return Conducted(len(self._trials), finished, self._stopped, self._cancelled)

    def wind_up(self) -> None:
        """Let what runs save and end, and write down what it cost."""
        self._stop("interrupted")
        while self._live:
            for ended in self._launcher.poll(1.0):
                self._ended(ended)
        self._notes.tell({})

    # ---- the loop ----

    def _settle(self, trials: list[Trial]) -> None:
        """Run what has no result, until nothing more can be done for these trials."""
        self._trials |= {trial.key.name: trial for trial in trials}
        # The baseline goes first, all seeds of it: its curve is what the kill rule waits for.
        for trial in sorted(trials, key=lambda trial: trial.variant.name != self._baseline):
            result = read_result(self._run.storage, trial.key)
            if result is None:
                self._waiting.append(trial)
            else:
                self._finish(trial, result)
        # What an earlier conductor left running is followed first, so that no more run at once than may.
        self._waiting = deque(sorted(self._waiting, key=lambda trial: not goes_on(trial, self._launcher)))
        while True:
            if self._is_time_to_look():
                self._look_around()
            self._start_what_can()
            if not (self._live or self._elsewhere.trials or self._waiting or self._later):
                break
            for ended in self._launcher.poll(self._patience()):
                self._ended(ended)
        if not self._cancelled and not self._selection.is_part:
            self._apply(self._judge.close())

    def _is_time_to_look(self) -> bool:
        return time.monotonic() - self._looked >= self._beat_seconds

    def _patience(self) -> float:
        """Seconds until something else than an end of a trial is due."""
        now = time.monotonic()
        return max(0.0, min([self._looked + self._beat_seconds, *(when for when, _ in self._later)]) - now)

    def _start_what_can(self) -> None:
        if self._stopped:
            self._waiting.clear()
            self._later.clear()
            return
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            self._waiting.appendleft(entry[1])
        while self._waiting and len(self._live) < self._launcher.slots and not self._stopped:
            if self._is_time_to_look():  # starting hundreds takes minutes, and what has ended must not wait for it
                return
            trial = self._waiting.popleft()
            task, before, is_running = trial_task(self._run, trial, self._launcher, self._command)
            if not is_running and self._elsewhere.trains(trial):
                continue
            taken = None if is_running else self._elsewhere.take_result(trial)
            if taken is not None:
                self._finish(trial, taken)
            elif is_running or self._affordable():
                self._start(trial, task, before)
            elif self._live:  # what runs may turn out cheaper than expected
                self._waiting.appendleft(trial)
                return
            else:
                self._finish(trial, self._records.not_affordable(trial, self._spent))

    def _affordable(self) -> bool:
        limit = self._run.study.budget.usd
        each = run_usd(self._declared.price, self._declared.resources.devices) or 0.0
        return limit is None or self._spent + (len(self._live) + 1) * each <= limit + 1e-9

    def _start(self, trial: Trial, task: Task, before: Attempts) -> None:
        self._records.spec(trial)
        if before.attempts:
            self._records.restarted(trial, before)
        self._launcher.start(task)
        self._elsewhere.started_here(trial)
        self._live[trial.key.name] = _Live(trial, before, time.monotonic())

    def _ended(self, ended: Ended) -> None:
        live = self._live.pop(ended.task.name)
        trial, kill = live.trial, self._judge.kill_of(live.trial.key)
        result = read_result(self._run.storage, trial.key)
        # A trial whose folder another process holds refuses to start like one whose config can't be run.
        lease = f"{trial.key.folder}/{LEASE}"
        free_dead_lease(self._run.storage, lease, ended.hosts)
        held = ended.code == USER_ERROR and is_live(self._run.storage, lease)
        told = ended.code in (RUN_AGAIN, None) or held or bool(kill or self._stopped)
        attempts = live.before.begin().last(
            Attempt(seconds=round(ended.seconds, 3), ended=True, code=ended.code, crashed=result is None and not told)
        )
        write_attempts(self._run.storage, trial.key.folder, attempts)
        if result is not None:
            self._finish(trial, self._records.with_image(trial, result, ended.image))
        elif kill is not None:
            self._finish(trial, self._records.killed(trial, None, kill))
        elif held:
            self._elsewhere.add(trial)
        elif not told and (attempts.crashes > self._declared.retries or ended.code == USER_ERROR):
            self._finish(trial, self._records.broken(trial, attempts, ended))
        elif not self._stopped:
            delay = FIRST_DELAY_SECONDS * 2 ** min(len(attempts.attempts) - 1, 16)
            self._later.append((time.monotonic() + min(delay, LONGEST_DELAY_SECONDS), trial))

    def _finish(self, trial: Trial, result: TrialResult) -> None:
        """Everything that follows from a result. Done again after a crash, it changes nothing."""
        if result.fingerprint != trial.fingerprint:
            raise UserError(
                f"{trial.key.name} of run {self._run.id} was made from another config, other data or other sources "
                f"(fingerprint {result.fingerprint}, now {trial.fingerprint}): --new makes another run"
            )
        result, added = self._records.with_cost(trial, result)
        self._spent += added
        self._apply(self._judge.over(trial.key))
        unranked = self._declared.promotion.policy in ("always", "if_affordable")
        is_answer = unranked and result.status is Status.COLLAPSED
        if trial.variant.name == self._baseline and result.status in _FAILED and not is_answer:
            self._baselines_failed += 1
            if len(stage_seeds(self._run.study, self._stage)) - self._baselines_failed < self._declared.min_seeds:
                self._stop(f"the baseline {trial.key.name} {result.status.value.replace('_', ' ')}: {result.reason}")

    def _apply(self, rulings: list[Ruling]) -> None:
        for ruling in rulings:
            self._curves.forget(ruling.key)
            trial = self._trials[ruling.key.name]
            result = read_result(self._run.storage, trial.key)
            assert result is not None
            if ruling.kill is not None:
                result = self._records.killed(trial, result, ruling.kill)
            self._records.ended(trial, result)

    # ---- what does not announce itself ----

    def _look_around(self) -> None:
        self._looked = time.monotonic()
        if self._lease.lost:
            raise InUseError(f"run {self._run.id} was taken over by another process")
        if not self._cancelled and self._run.storage.exists(CANCEL):
            self._cancelled = True
            self._records.cancelled(self._run.storage.read_json(CANCEL))
            self._stop("cancelled")
        for trial, result in self._elsewhere.over(stopped=bool(self._stopped)):
            if result is not None:
                self._finish(trial, result)
            else:
                self._waiting.appendleft(trial)
        running = [live.trial.variant.name for live in self._live.values()]
        for arm, kill in self._judge.look(running).items():
            self._end_arm(arm, kill)
        self._notes.tell(self._launcher.waiting())
        for name, seconds in self._launcher.running().items():
            live = self._live[name]
            if self._looked - live.beat >= BEAT_SECONDS:
                live.beat = self._looked
                so_far = live.before.begin().last(Attempt(seconds=round(seconds, 3)))
                write_attempts(self._run.storage, live.trial.key.folder, so_far)

    def _end_arm(self, arm: str, kill: Kill) -> None:
        """End an arm's trials: what runs is told to, what waits for its restart is not started again."""
        self._launcher.stop(
            [name for name, live in self._live.items() if live.trial.variant.name == arm],
            grace_seconds=STOP_GRACE_SECONDS,
        )
        idle = [trial for trial in [*self._waiting, *(trial for _, trial in self._later)] if trial.variant.name == arm]
        self._waiting = deque(trial for trial in self._waiting if trial.variant.name != arm)
        self._later = [entry for entry in self._later if entry[1].variant.name != arm]
        for trial in idle:
            self._finish(trial, self._records.killed(trial, None, kill))

    def _stop(self, why: str) -> None:
        self._stopped = self._stopped or why
        self._launcher.stop(grace_seconds=STOP_GRACE_SECONDS)


__all__ = ["Conducted", "conduct"]


def conduct(
    run: Run,
    stage: str,
    launcher: Launcher,
    selection: Selection | None = None,
    *,
    command: TrialCommand = trial_command,
    tracking_uri: str | None = None,
    beat_seconds: float | None = None,
) -> Conducted:
    """Run the stage's trials until each has a result, and those that `decide` asks for after them.

    `command` makes the argv of a trial from its folder's URI; `tracking_uri` is MLflow's, None for none.
    `beat_seconds` is how often the conductor looks at what does not announce itself (a cancellation, the curves of
    running arms): 2 s on a file system, 10 s elsewhere. The launcher is closed at the end.

    Raises InUseError where another process holds the run, UserError where a finished trial was made from something
    else, StorageError where the store can't be written. Trials that fail, diverge or can't be paid are results.
    """
    chosen = selection or Selection()
    if chosen.stages is not None and stage not in chosen.stages:
        launcher.close()
        return Conducted(0, 0)
    beat = beat_seconds or (2.0 if run.storage.local_path(LEASE) is not None else 10.0)
    with ExitStack() as stack:
        lease = Lease(run.storage, LEASE, what=f"run {run.id}", token=os.environ.get(TOKEN_VARIABLE) or None)
        try:
            stack.enter_context(lease)
        except BaseException:
            launcher.close()
            raise
        if tracking_uri is not None:
            stack.enter_context(Tracker(run, stage, f"trials/{stage}", tracking_uri))
        stack.callback(launcher.close)
        loop = StageLoop(run, stage, launcher, chosen, command, beat, lease)
        try:
            return loop.conduct()
        except KeyboardInterrupt:
            loop.wind_up()
            raise
        except InUseError:
            launcher.detach()  # whoever took the run over follows its trials
            raise
