"""A stage's conductor: starts its trials, follows them, and ends when each has a result.

It may be killed at any instant. All that it knows lies in the store: a trial with a result is done, one without is
started (and resumes by itself), and what it writes besides (costs, judgements, ledger entries) is computed from files
and keyed, so that doing it again changes nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass

from podium.components.launch.foreign_trials import ForeignTrials, free_dead_lease, goes_on, trial_task
from podium.components.launch.judge import Curves, Judge, Judgement
from podium.components.launch.launcher import (
    BEAT_SECONDS,
    Attempt,
    Attempts,
    Launcher,
    Task,
    TaskEnd,
    TrialCommand,
    WaitingNotes,
    trial_command,
    write_attempts,
)
from podium.components.launch.records import Records
from podium.components.launch.tracker import Tracker
from podium.components.policies.decide import decide
from podium.components.study.design import Selection
from podium.components.study.layout import CANCEL, LEASE, trials_key
from podium.components.study.policy import policy_of
from podium.components.study.run import Run
from podium.components.study.trials import Trial, run_usd, stage_seeds
from podium.components.study.verdict import MoreTrials
from podium.trainer.trial.errors import ExitCode, InUseError, UserError
from podium.trainer.trial.lease import TOKEN_VARIABLE, Lease, is_live
from podium.trainer.trial.result import (
    RESULT,
    Status,
    TrialResult,
    read_result,
)
from podium.trainer.trial.stopping import Ending

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 60.0
"""Wait before a trial's first restart, doubled each time up to the longest."""
STOP_GRACE_SECONDS = 60.0
"""Time for a trial to save when it is told to end."""
_FAILED = (Status.DIVERGED, Status.COLLAPSED, Status.OUT_OF_MEMORY, Status.BROKEN)
"""Ends of a baseline's trial that leave nothing to compare with."""


def conduct(
    run: Run,
    stage: str,
    launcher: Launcher,
    selection: Selection | None = None,
    *,
    command: TrialCommand = trial_command,
    tracking_uri: str | None = None,
    beat_seconds: float | None = None,
) -> StageOutcome:
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
        return StageOutcome(0, 0)
    beat = beat_seconds or (2.0 if run.storage.local_path(LEASE) is not None else 10.0)
    with ExitStack() as stack:
        lease = Lease(run.storage, LEASE, what=f"run {run.id}", token=os.environ.get(TOKEN_VARIABLE) or None)
        try:
            stack.enter_context(lease)
        except BaseException:
            launcher.close()
            raise
        if tracking_uri is not None:
            stack.enter_context(Tracker(run, stage, trials_key(stage), tracking_uri))
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


@dataclass(frozen=True)
class StageOutcome:
    """How a stage's conductor ended."""

    trials: int
    finished: int
    """Trials that have a result."""
    stopped: str = ""
    """Why trials were left without a result; empty where none was."""
    cancelled: bool = False


@dataclass
class LiveTrial:
    """A trial that was started and has not ended."""

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
        self._foreign = ForeignTrials(run, stage)
        self._trials: dict[str, Trial] = {}
        self._waiting: deque[Trial] = deque()
        self._later: list[tuple[float, Trial]] = []
        """Trials to be started again, and when."""
        self._live: dict[str, LiveTrial] = {}
        self._baselines_failed = 0
        self._stopped = ""
        self._cancelled = False
        self._looked = 0.0
        self._notes = WaitingNotes(run.storage)
        self._spent = run.spent_usd()

    def conduct(self) -> StageOutcome:
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
        finished = sum(self._run.storage.exists(trial.key.file(RESULT)) for trial in self._trials.values())
        return StageOutcome(len(self._trials), finished, self._stopped, self._cancelled)

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
            result = read_result(self._run.storage, trial.key.folder)
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
            if not (self._live or self._foreign.trials or self._waiting or self._later):
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
            if not is_running and self._foreign.trains(trial):
                continue
            taken = None if is_running else self._foreign.take_result(trial)
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
        self._foreign.started_here(trial)
        self._live[trial.key.name] = LiveTrial(trial, before, time.monotonic())

    def _ended(self, ended: TaskEnd) -> None:
        live = self._live.pop(ended.task.name)
        trial, kill = live.trial, self._judge.kill_of(live.trial.key)
        result = read_result(self._run.storage, trial.key.folder)
        # A trial whose folder another process holds refuses to start like one whose config can't be run.
        lease = trial.key.file(LEASE)
        free_dead_lease(self._run.storage, lease, ended.hosts)
        in_use = ended.code == ExitCode.USER_ERROR and is_live(self._run.storage, lease)
        on_request = ended.code in (ExitCode.RUN_AGAIN, None) or in_use or bool(kill or self._stopped)
        attempts = live.before.begin().last(
            Attempt(
                seconds=round(ended.seconds, 3), ended=True, code=ended.code, crashed=result is None and not on_request
            )
        )
        write_attempts(self._run.storage, trial.key.folder, attempts)
        if result is not None:
            self._finish(trial, self._records.with_image(trial, result, ended.image))
        elif kill is not None:
            self._finish(trial, self._records.killed(trial, None, kill))
        elif in_use:
            self._foreign.add(trial)
        elif not on_request and (attempts.crashes > self._declared.retries or ended.code == ExitCode.USER_ERROR):
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
        is_answer = result.status in policy_of(self._run.study, self._stage).unranked_results
        if trial.variant.name == self._baseline and result.status in _FAILED and not is_answer:
            self._baselines_failed += 1
            if len(stage_seeds(self._run.study, self._stage)) - self._baselines_failed < self._declared.min_seeds:
                self._stop(f"the baseline {trial.key.name} {result.status.value.replace('_', ' ')}: {result.reason}")

    def _apply(self, judgements: list[Judgement]) -> None:
        for judgement in judgements:
            self._curves.forget(judgement.key)
            trial = self._trials[judgement.key.name]
            result = read_result(self._run.storage, trial.key.folder)
            assert result is not None
            if judgement.kill is not None:
                result = self._records.killed(trial, result, judgement.kill)
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
        for trial, result in self._foreign.over(stopped=bool(self._stopped)):
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

    def _end_arm(self, arm: str, kill: Ending) -> None:
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
