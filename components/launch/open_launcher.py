"""Which launcher a name means."""

from __future__ import annotations

from podium.components.launch.launcher import Launcher
from podium.components.launch.process import open_process_launcher
from podium.trainer.errors import Problem, UserError
from podium.trainer.storage import Storage

KINDS = ("process",)


def open_launcher(kind: str, storage: Storage, *, parallel: int, devices_per_task: int) -> Launcher:
    """The launcher called `kind`, for at most `parallel` tasks of `devices_per_task` GPUs (0: a CPU) at once.

    `storage` is the run's. Raises UserError for another launcher, or one that has no device to give.
    """
    if kind == "process":
        return open_process_launcher(storage, parallel=parallel, devices_per_task=devices_per_task)
    raise UserError(Problem("--launcher", f"must be one of {', '.join(KINDS)}, got {kind!r}"))
