"""A stage's conductor: starts its trials, follows them, and ends when each has a result.

It may be killed at any instant. All that it knows lies in the store: a trial with a result is done, one without is
started (and resumes by itself), and what it writes besides (costs, judgements, ledger entries) is computed from files
and keyed, so that doing it again changes nothing.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from podium.components.launch.conductor_loop import Conducted, StageLoop
from podium.components.launch.launcher import Launcher, TrialCommand, trial_command
from podium.components.launch.tracker import Tracker
from podium.components.study.layout import LEASE
from podium.components.study.run import Run
from podium.components.study.selection import Selection
from podium.trainer.errors import InUseError
from podium.trainer.lease import TOKEN_VARIABLE, Lease

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
