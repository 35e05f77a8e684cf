"""From a trial to the task that a launcher starts: its next attempt, or one of an earlier conductor that goes on."""

from __future__ import annotations

from dataclasses import replace

from podium.components.launch.attempts import Attempts, read_attempts
from podium.components.launch.launcher import ATTEMPT_VARIABLE, Launcher, Task, TrialCommand
from podium.components.study.run import Run, Trial
from podium.trainer.lease import TOKEN_VARIABLE
from podium.trainer.storage import join_uri


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
