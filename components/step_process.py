"""What every step does around its work: it ends when the pipeline that started it ends, and it fails in words.

On this machine kfp.local starts a step through a shell that outlives a killed parent, so PDEATHSIG alone would leave
the step (and its trials) running. The pipeline's process names itself in `PODIUM_PIPELINE_PID`; a step watches it.
Under Kubeflow neither variable is set and a step's life is its pod's. There a step that fails leaves why in the store:
Kubeflow's API would say only which step it was.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from podium.components.study.layout import StepFailure, clear_failure, note_failure
from podium.trainer.trial.errors import ExitCode, PodiumError, UserError
from podium.trainer.trial.storage import open_storage

PIPELINE_PID = "PODIUM_PIPELINE_PID"
"""Environment: process id of the local pipeline that a step belongs to."""
FAILURE_FILE = "PODIUM_FAILURE_FILE"
"""Environment: where a step that fails leaves why, for whoever started the pipeline."""

PRIORITY_CLASS = "PODIUM_PRIORITY_CLASS"
"""Environment: PriorityClass of the Jobs that a step starts, over the installation's."""


@contextmanager
def step_process(
    name: str, *, store: str = "", run: str = "", kubeflow_run: str = "", priority: str = ""
) -> Iterator[None]:
    """Run a step's work: tied to the local pipeline's life, and every error of ours told without traceback.

    `store` with `run`, or with Kubeflow's run, says where a step on a cluster leaves why it failed. Raises SystemExit
    with 2 for a UserError and 1 for another PodiumError; anything else, a bug, goes up as it is.
    """
    pid = os.environ.get(PIPELINE_PID)
    if pid:
        end_with(int(pid))
    reporter = FailureReporter("" if pid else store, run, kubeflow_run)
    reporter.forget()
    if priority:
        os.environ[PRIORITY_CLASS] = priority
    try:
        yield
    except UserError as error:
        reporter.report(StepFailure(name, "user", error.message))
        raise SystemExit(ExitCode.USER_ERROR) from None
    except PodiumError as error:
        reporter.report(StepFailure(name, "failed", str(error)))
        raise SystemExit(ExitCode.CRASH) from None
    except Exception as error:
        message = "".join(traceback.format_exception_only(error)).strip()
        # Python prints the traceback itself
        reporter.report(StepFailure(name, "crash", message), shown=False)
        raise


def end_with(pid: int) -> None:
    """Kill this process with SIGKILL as soon as process `pid` is gone, now included; watched by a daemon thread.

    SIGKILL, because whoever killed the other process uncleanly expects nothing to be written after it.
    """
    wait = _wait_by_descriptor(pid) if sys.platform == "linux" else lambda: _wait_by_polling(pid)

    def kill_when_gone() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill_when_gone, daemon=True, name=f"ends-with-{pid}").start()


def _wait_by_descriptor(pid: int) -> Callable[[], object]:
    # The descriptor is taken before the thread starts: a process that dies meanwhile is still the one meant.
    poll = select.poll()
    try:
        poll.register(os.pidfd_open(pid), select.POLLIN)  # readable once the process has ended
    except ProcessLookupError:
        return lambda: None
    return poll.poll


def _wait_by_polling(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.5)


@dataclass(frozen=True)
class FailureReporter:
    """Writes a step's failure to its log, to the local pipeline's file and to the store."""

    store: str
    run: str
    kubeflow_run: str

    def forget(self) -> None:
        """Remove what an earlier attempt left in the store."""
        if self.store:
            # a store that can't be written fails the step's own work, with better words
            with suppress(PodiumError):
                clear_failure(open_storage(self.store), run_id=self.run, kubeflow_run=self.kubeflow_run)

    def report(self, failure: StepFailure, *, shown: bool = True) -> None:
        """Write down why the step failed; `shown` says whether the log needs it too."""
        if shown:
            print(f"{failure.step}: {failure.message}", file=sys.stderr, flush=True)
        path = os.environ.get(FAILURE_FILE)
        if path:
            Path(path).write_text(json.dumps(asdict(failure)), encoding="utf-8")
        if self.store:
            with suppress(PodiumError):
                note_failure(open_storage(self.store), failure, run_id=self.run, kubeflow_run=self.kubeflow_run)
