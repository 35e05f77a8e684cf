"""Which launcher a name means."""

from __future__ import annotations

from podium.components.launch.launcher import Launcher
from podium.components.launch.process import open_process_launcher
from podium.components.study.run import Run
from podium.components.study.schema import Resources
from podium.trainer.errors import Problem, UserError

KINDS = ("process", "job")


def open_launcher(kind: str, run: Run, step: str, resources: Resources, *, parallel: int) -> Launcher:
    """The launcher called `kind` for a step of the run, for at most `parallel` tasks with these resources at once.

    `step` is a stage's name, or that of the step itself. Raises UserError for another launcher, for one that has no
    device to give, and where the run can't be reached from where it starts tasks.
    """
    if kind == "process":
        if resources.nodes > 1:
            words = f"must be 1 with launcher process (launcher job spreads a trial), got {resources.nodes}"
            raise UserError(Problem("resources.nodes", words))
        return open_process_launcher(run.storage, parallel=parallel, devices_per_task=resources.gpus_per_trial)
    if kind == "job":
        # here, since importing the Kubernetes client takes a second and 60 MB
        from podium.components.launch.open_job import open_job_launcher

        return open_job_launcher(run, step, resources, parallel=parallel)
    raise UserError(Problem("--launcher", f"must be one of {', '.join(KINDS)}, got {kind!r}"))
