"""`podium cancel` and `podium gc`: end a run from outside, and remove what no run needs."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from podium.components.study import layout
from podium.components.study.layout import kubeflow_run_of
from podium.pipelines.cli.find import all_runs, describe, end_run, find_run, is_kubeflow_id, open_run
from podium.pipelines.cli.options import Json, RunArgument, Store, command, result, result_json, say
from podium.trainer.trial.errors import Problem, UserError
from podium.trainer.trial.storage import Storage

if TYPE_CHECKING:
    from podium.components.study.run import Run
    from podium.components.study.verdict import Verdict


WAIT_SECONDS, JOBS_WAIT_SECONDS = 90.0, 180.0


@command("Run", 4)
def cancel(run: RunArgument, store: Store = "runs") -> None:
    """Ask a run to stop: its trials save and end. The same [b]podium run[/b] goes on from there.

    A run on Kubeflow is ended there too once its trials have saved, where KF_PIPELINES_ENDPOINT says where that is.

    Example: [b]podium cancel runs/demo[/b], or with the id that [b]podium submit[/b] printed
    """

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
    from podium.components.launch.job_cluster import ApiError
    from podium.components.launch.reap import cancel_jobs

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


@command("Store and cluster", 1)
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

    found = find_garbage(store)
    if as_json and not (dry_run or yes):
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
    from podium.trainer.trial.section import format_count

    return "" if count is None else f"{format_count(count)}B"


# Garbage in a store, with the reason for each object.

FULL = re.compile(r"/ckpt-step-\d+\.pt$")
BETWEEN = re.compile(r"/model-step-\d+\.(safetensors|json)$")
"""Models at steps between; `best-model` and `final-model` are files of their own."""


@dataclass(frozen=True)
class Garbage:
    """One thing that can go."""

    place: str
    """Its key in the store."""
    why: str
    bytes: int | None
    """None in S3, where asking for each size is a paid request."""
    remove: Callable[[], None]


def find_garbage(store: str) -> list[Garbage]:
    """Everything of a store that can go. A run that is going on keeps all it has.

    Raises UserError where the store has no run: then it may be no store at all.
    """

    runs = all_runs(store)
    live = {run.id for run in runs if run.state() == "running"}
    root = runs[0].store
    found = [item for run in runs if run.id not in live for item in _checkpoints(run)]
    found += _unused_data(root, {fingerprint for run in runs for fingerprint in run.registered.datasets.values()})
    if not live:
        found += _scratch(root)
    return found


def _checkpoints(run: Run) -> Iterator[Garbage]:
    """Checkpoints of the gate once it has passed, and of ended trials once the stage has its verdict.

    Best and final models stay, and the full checkpoints of what was promoted, which may be continued.
    """
    gate = run.read_json(layout.SHAKEDOWN)
    if gate is not None and gate.get("passed"):
        for key in run.storage.list("shakedown"):
            if "/checkpoints/" in key:
                yield _object(run, key, "checkpoint of the gate")
    for stage in run.stages:
        verdict = run.verdict(stage)
        if verdict is None or verdict.decision == "await":
            continue
        promoted = {ref.name for ref in verdict.promoted}
        for trial in run.trials(stage):
            if run.result(trial.key) is None:
                continue
            for key in run.storage.list(f"{trial.key.folder}/checkpoints"):
                if FULL.search(key) and trial.variant.name not in promoted:
                    yield _object(run, key, "checkpoint to resume from")
                elif BETWEEN.search(key):
                    yield _object(run, key, "model at a step between")


def _unused_data(store: Storage, used: set[str]) -> Iterator[Garbage]:
    keys = store.list(layout.DATA)
    for fingerprint in sorted({key.split("/")[1] for key in keys if key.count("/") > 1} - used):
        folder = layout.data_key(fingerprint)
        sizes = [_folder_size(store, key) for key in keys if key.startswith(f"{folder}/")]
        known = [size for size in sizes if size is not None]
        yield Garbage(
            folder,
            "data of no run",
            sum(known) if len(known) == len(sizes) else None,
            lambda folder=folder: store.delete_folder(folder),  # type: ignore[misc]
        )


def _scratch(store: Storage) -> Iterator[Garbage]:
    """What killed writers left: scratch files, and uploads in parts, which S3 keeps and bills."""
    for item in store.leftovers():
        yield Garbage(item.key, "scratch of a killed writer", item.bytes, item.remove)


def _object(run: Run, key: str, why: str) -> Garbage:
    return Garbage(
        f"{layout.run_key(run.id)}/{key}", why, _folder_size(run.storage, key), lambda: run.storage.delete(key)
    )


def _folder_size(store: Storage, key: str) -> int | None:
    path = store.local_path(key)
    return None if path is None else path.stat().st_size


# Decisions of a person about a run, recorded in its ledger.

GO_ON = "the same podium run goes on from here"

By = Annotated[str | None, typer.Option(help="Who decides; by default the user of this machine.")]
Why = Annotated[str, typer.Option(help="Why, for the ledger and the report.")]


@command("Decide", 1)
def approve(run: RunArgument, because: Why = "", by: By = None, store: Store = "runs", as_json: Json = False) -> None:
    """Let a verdict take effect that awaits approval. The same [b]podium run[/b] then goes on.

    Example: [b]podium approve runs/demo --because "budget agreed"[/b]
    """
    from podium.components.select.amend import approve as amend

    found = open_run(run, store)
    _tell(found, amend(found, because=because, by=by or _user()), as_json=as_json)


@command("Decide", 2)
def override(
    run: RunArgument,
    promote: Annotated[str, typer.Option(help="The variant that goes on.")],
    because: Why,
    by: By = None,
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Let another variant go on than the last verdict chose. What it wins after that is exploratory.

    Example: [b]podium override runs/demo --promote palm --because "the winner is too slow to serve"[/b]
    """
    from podium.components.select.amend import override as amend

    found = open_run(run, store)
    _tell(found, amend(found, promote, because=because, by=by or _user()), as_json=as_json)


@command("Decide", 3)
def extend(
    run: RunArgument,
    seeds: Annotated[int, typer.Option(help="Fresh seeds for every variant of the last stage that was decided.")],
    because: Why,
    by: By = None,
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Add seeds to the last stage that was decided; it is decided again. What it shows then is exploratory.

    Example: [b]podium extend runs/demo --seeds 3 --because "p was 0.06"[/b]
    """
    from podium.components.select.amend import extend as amend

    found = open_run(run, store)
    fresh = amend(found, seeds, because=because, by=by or _user())
    if as_json:
        result_json({"run": found.id, "seeds": fresh, "state": found.state()})
    else:
        result(f"{found.id}: extended by the seeds {', '.join(map(str, fresh))}")
        say(GO_ON)


def _tell(run: Run, verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        promoted = [ref.name for ref in verdict.promoted]
        plain = {"stage": verdict.stage, "decision": verdict.decision, "promoted": promoted, "claim": verdict.claim}
        result_json({"run": run.id, **plain, "reason": verdict.reason, "state": run.state()})
    else:
        result(f"{run.id}: {verdict.reason}")
        say(GO_ON)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return ""
