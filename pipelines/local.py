"""The ladder on this machine: `kfp.local` runs it in a child process, its output in the run's `logs/pipeline.log`.

KFP's log floods a terminal and its steps are processes anyway, so whoever starts a pipeline draws its progress from
the store meanwhile. However the starter ends, killed included, the pipeline, its steps and their trials end too:
the child watches its starter and each step watches the child (`components.step_process`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podium.components.prepare_data.gpus import study_gpus
from podium.components.step_process import FAILURE_FILE, PIPELINE_PID, end_with
from podium.components.study.design import Selection
from podium.components.study.layout import PIPELINE_LOG, StepFailure
from podium.components.study.load import dump_study
from podium.pipelines.compile import study_input
from podium.trainer.trial.errors import PodiumError, UserError
from podium.trainer.trial.lease import TOKEN_VARIABLE, Lease
from podium.trainer.trial.storage import TAIL_LINES, read_end

if TYPE_CHECKING:
    from podium.components.study.run import Run


class PipelineError(PodiumError):
    """A step of a local pipeline failed, and not by its user's mistake. The message names the step and its log."""


class LocalPipeline:
    """A pipeline that runs in a child process. Also a context manager: leaving it ends what still runs."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, work: tempfile.TemporaryDirectory[str], run: Run
    ) -> None:
        self.process = process
        self.log = log
        self._work = work
        self._run = run
        self._failure: StepFailure | None = None
        self._closed = False

    def poll(self) -> int | None:
        """0 when the pipeline has ended and every step succeeded, another number when not, None while it runs."""
        code = self.process.poll()
        if code is not None:
            self._close(code)
        return code

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Wait for the end; the code of `poll`. Raises subprocess.TimeoutExpired."""
        self.process.wait(timeout_seconds)
        code = self.poll()
        assert code is not None
        return code

    @property
    def failure(self) -> StepFailure | None:
        """Why it failed; None while it runs and when it succeeded."""
        self.poll()
        return self._failure

    def error(self) -> PodiumError | None:
        """Why it failed, as the error to raise: a UserError for what the user can fix; None where it did not fail."""
        failure = self.failure
        if failure is None:
            return None
        if failure.kind == "user":
            return UserError(failure.message)
        log = f"{self._run.storage.uri}/{PIPELINE_LOG}"
        return PipelineError(f"{failure.step or 'a step'} failed: {failure.message}\n(log: {log})")

    def stop(self, grace_seconds: float = 30.0) -> None:
        """Ask the step that runs to save its trials and end; kill what still runs after the grace."""
        if self.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> LocalPipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _close(self, code: int) -> None:
        if self._closed:
            return
        self._closed = True
        if code != 0:
            self._failure = self._read_failure(Path(self._work.name) / "failure.json", code)
        if self._run.storage.local_path(PIPELINE_LOG) is None:
            self._run.storage.upload(self.log, PIPELINE_LOG)
        self._work.cleanup()

    def _read_failure(self, path: Path, code: int) -> StepFailure:
        if path.exists():
            return StepFailure(**json.loads(path.read_text(encoding="utf-8")))
        lines = read_end(self.log).decode(errors="replace").splitlines() if self.log.exists() else []
        last = "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])
        return StepFailure(None, "crash", f"the pipeline ended with code {code}; its last lines:\n{last}")


def start_local(
    run: Run, *, selection: Selection | None = None, env: Mapping[str, str] | None = None, token: str | None = None
) -> LocalPipeline:
    """Start the run's pipeline on this machine and return at once.

    `env` goes over this process's environment; `token` is that of the run's lease, which the steps share with the
    holder. The run must exist (`Run.create`). Call it from a thread that lives as long as the pipeline may.
    """
    selection = selection or Selection()
    work = tempfile.TemporaryDirectory(prefix="podium-pipeline-")
    folder = Path(work.name)
    request = {
        "starter": os.getpid(),
        "name": run.study.name,
        "stages": list(run.study.stages),
        "root": str(folder / "root"),
        "defaults": {
            "study": study_input(dump_study(run.study), run.store_uri),
            "profile": run.study.profile,
            "store": run.store_uri,
            "launcher": selection.launcher,
            "selection": selection.to_json(),
            "gpus": study_gpus(run.study, selection.launcher, selection.parallel),
        },
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    log = run.storage.local_path(PIPELINE_LOG) or folder / "pipeline.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **(env or {}), FAILURE_FILE: str(folder / "failure.json"), "PYTHONUNBUFFERED": "1"}
    if token is not None:
        environment[TOKEN_VARIABLE] = token
    with log.open("ab") as output:
        output.write(f"== pipeline of {run.id}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "podium.pipelines.local", str(folder / "request.json")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the starter, which then calls stop()
        )
    return LocalPipeline(process, log, work, run)


def run_local(run: Run, *, selection: Selection | None = None, env: Mapping[str, str] | None = None) -> None:
    """Run the pipeline on this machine and wait for its end, holding the run's lease.

    What came out is in the run (`run.state()`, `run.verdict(stage)`): a stage that promotes nobody is a result, not an
    error. Raises InUseError where another process runs it, UserError for what a step refused, PipelineError otherwise.
    """
    with (
        Lease(run.storage, what=f"run {run.id}") as lease,
        start_local(run, selection=selection, env=env, token=lease.token) as pipeline,
    ):
        pipeline.wait()
        error = pipeline.error()
    if error is not None:
        raise error


def main(request_file: str) -> None:
    """The child process: build the ladder that the request describes, and run it."""
    request: dict[str, Any] = json.loads(Path(request_file).read_text(encoding="utf-8"))
    end_with(request["starter"])
    # A step that is told to end gets the time it needs: this process lives until the step's output is at its end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.environ[PIPELINE_PID] = str(os.getpid())

    # GPU requests, display names and the like are for a cluster; that they do nothing here is no news.
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner", category=UserWarning)
    # KFP loads its Docker runner too, with an HTTP library and its character detection: 0.3 s for nothing.
    sys.modules["docker"] = None  # type: ignore[assignment]
    from podium.components.kfp_light import local
    from podium.pipelines.ladder import Defaults, build_ladder

    ladder = build_ladder(request["name"], request["stages"], Defaults(**request["defaults"]))
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=request["root"],
        workspace_root=request["root"],  # by default KFP makes a temporary folder and leaves it
    )
    try:
        ladder()
    except RuntimeError as error:
        # KFP's word for a step that failed; the step itself has said why, above in this log.
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
