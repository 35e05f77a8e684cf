"""One task of a step that is no stage, from its start to an end of its own: what shakedown and evaluation run."""

from __future__ import annotations

import time
from dataclasses import replace

from podium.components.launch.launcher import ATTEMPT_VARIABLE, RUN_AGAIN, Ended, Launcher, Task
from podium.components.launch.waiting import WaitingNotes
from podium.components.study.layout import CANCEL
from podium.components.study.run import Run
from podium.trainer.errors import PodiumError
from podium.trainer.lease import TOKEN_VARIABLE

POLL_SECONDS = 2.0
DELAY_SECONDS = 5.0
"""Before a task that was interrupted is started again."""
MOST_STARTS = 20


def run_task(run: Run, launcher: Launcher, task: Task) -> list[Ended]:
    """Start the task and wait for its end; again where it was interrupted. Every attempt, the last at the end.

    Raises PodiumError when the run is cancelled.
    """
    notes, ends = WaitingNotes(run.storage), list[Ended]()
    while True:
        env = {ATTEMPT_VARIABLE: str(task.attempt), **task.env, TOKEN_VARIABLE: ""}
        launcher.start(replace(task, env=env))
        while not (ended := launcher.poll(POLL_SECONDS)):
            notes.tell(launcher.waiting())
            if run.storage.exists(CANCEL):
                raise PodiumError(f"run {run.id} was cancelled")
        notes.tell({})
        ends += ended
        if ends[-1].code not in (RUN_AGAIN, None) or len(ends) == MOST_STARTS:
            return ends
        time.sleep(DELAY_SECONDS)
        task = replace(task, attempt=task.attempt + 1)
