"""`podium cancel` and `podium gc`: end a run from outside, and remove what no run needs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.console import result, result_json, say
from podium.pipelines.cli.find import open_run
from podium.pipelines.cli.kubeflow_run import describe, end_run, find_run, is_kubeflow_id
from podium.pipelines.cli.options import Json, RunArgument, Store

if TYPE_CHECKING:
    from podium.components.study.run import Run

WAIT_SECONDS, JOBS_WAIT_SECONDS = 90.0, 180.0


def cancel(run: RunArgument, store: Store = "runs") -> None:
    """Ask a run to stop: its trials save and end. The same [b]podium run[/b] goes on from there.

    A run on Kubeflow is ended there too once its trials have saved, where KF_PIPELINES_ENDPOINT says where that is.

    Example: [b]podium cancel runs/demo[/b], or with the id that [b]podium submit[/b] printed
    """
    from podium.components.study import layout
    from podium.components.study.kubeflow import kubeflow_run_of
    from podium.trainer.errors import UserError

    if is_kubeflow_id(run) and find_run(run, store) is None:
        describe(run, store)  # refuses one that nobody knows
        result(_ended_on_kubeflow(run))
        return
    found = open_run(run, store)
    state = found.state()
    if state in ("succeeded", "stopped", "gate_failed"):
        raise UserError(f"run {found.id} has ended already: {state}")
    found.storage.write_json(layout.CANCEL, {"cancelled": True})
    say(f"run {found.id}: asked to stop, its trials are saving")
    deadline = time.monotonic() + WAIT_SECONDS
    while found.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    on_kubeflow = kubeflow_run_of(found.storage)
    if on_kubeflow is not None:
        say(_ended_on_kubeflow(on_kubeflow))
    if found.storage.exists(layout.JOBS):
        _end_jobs(found)
    state = found.state()
    result(f"{found.id}: {'cancelled' if state == 'cancelled' else f'asked, still {state}'}")


def _end_jobs(run: Run) -> None:
    """What a conductor that is gone did not do: its trials' Jobs would save and end only when they miss it."""
    from podium.components.launch.job_cancel import cancel_jobs
    from podium.components.launch.job_cluster import ApiError
    from podium.trainer.errors import UserError

    try:
        found, left = cancel_jobs(run, wait_seconds=JOBS_WAIT_SECONDS)
    except (UserError, ApiError) as error:
        say(f"its Jobs could not be ended from here ({error}): they save and end when they miss their conductor")
        return
    if found:
        still = f", {left} still save" if left else ", their trials have saved"
        say(f"ended {found} Job{'s' if found > 1 else ''} of a conductor that is gone{still}")


def _ended_on_kubeflow(kubeflow_run: str) -> str:
    words = {
        True: "ended",
        False: "had ended already",
        None: "not ended: KF_PIPELINES_ENDPOINT does not say where it is",
    }
    return f"Kubeflow's run {kubeflow_run}: {words[end_run(kubeflow_run)]}"


def gc(
    store: Store = "runs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go; remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what no run needs: checkpoints of ended trials, scratch of killed writers, unused datasets.

    Results, metrics, verdicts, reports and models (best and final) always stay, and so does all of a run that is going.

    Example: [b]podium gc --store runs --dry-run[/b]
    """
    from podium.pipelines.cli.garbage import find_garbage

    found = find_garbage(store)
    if as_json and not (dry_run or yes):
        from podium.trainer.errors import Problem, UserError

        raise UserError(Problem("--json", "asks nothing, so give --yes or --dry-run with it"))
    if not as_json:
        for item in found:
            result(f"{item.why:<28}{_size(item.bytes):>8}  {item.place}")
    removing = bool(found) and not dry_run and (yes or typer.confirm(f"Remove these {len(found)}?", err=True))
    if removing:
        for item in found:
            item.remove()
    freed = sum(item.bytes or 0 for item in found)
    if as_json:
        items = [{"place": item.place, "why": item.why, "bytes": item.bytes} for item in found]
        result_json({"removed": removing, "bytes": freed, "items": items})
    else:
        say(f"{'removed' if removing else 'would free' if dry_run else 'kept'} {_size(freed)}")


def _size(count: int | None) -> str:
    from podium.trainer.units import format_count

    return "" if count is None else f"{format_count(count)}B"
