"""`podium status` and `podium list`: where a run stands, and which runs a store has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.components.study import layout
from podium.pipelines.cli.find import all_runs, describe, find_run, is_kubeflow_id, open_run
from podium.pipelines.cli.options import Json, RunArgument, Store, command, result, result_json, stdout
from podium.pipelines.cli.view import money, picture, take
from podium.trainer.trial.errors import UserError

if TYPE_CHECKING:
    from podium.components.study.run import Run


OptionalRun = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run's id in --store (ours or Kubeflow's), a run's folder, or a store (its newest run); else --store.",
    ),
]


@command("Look", 1)
def status(run: OptionalRun = None, store: Store = "runs", as_json: Json = False) -> None:
    """Show where a run stands: its state, trials, verdicts, money and champion.

    Example: [b]podium status runs/demo[/b], or for a script [b]podium status runs/demo --json[/b]
    """
    if run is not None and is_kubeflow_id(run) and find_run(run, store) is None:
        _print_kubeflow(describe(run, store), as_json=as_json)
        return
    found = open_run(run, store)
    state = found.status()
    if as_json:
        result_json(state)
        return
    _print(found, state)


def _print_kubeflow(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        result_json(found)
        return
    result(f"{found['kubeflow_run']}: {found['state']}, no run of ours yet{_because(found['reason'])}")
    for name, state in found["steps"].items():
        result(f"  {name}: {state}")


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


@command("Look", 2, name="list")
def list_runs(store: Store = "runs", as_json: Json = False) -> None:
    """List the runs of a store, the newest last.

    Example: [b]podium list --store runs/demo[/b]
    """
    rows = [run.status() for run in all_runs(store)]
    if as_json:
        result_json({"runs": rows})
        return
    from rich.table import Table

    table = Table("run", "study", "state", "trials", "champion", box=None, pad_edge=False)
    for row in rows:
        finished, trials = (sum(stage[key] for stage in row["stages"]) for key in ("finished", "trials"))
        table.add_row(row["run_id"], row["study"], row["state"], f"{finished}/{trials}", _champion(row["champion"]))
    stdout().print(table)


def _print(run: Run, state: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    console.print(Text.assemble((run.id, "bold"), f"  {state['state']}  {run.uri}"), soft_wrap=True)
    snapshot = take(run)
    if state["state"] == "running":
        console.print(picture(snapshot))
    else:
        table = Table("stage", "trials", "finished", "killed", "broken", "verdict", box=None, pad_edge=False)
        for stage in state["stages"]:
            counts = [str(stage[key]) for key in ("trials", "finished", "killed", "broken")]
            verdict = run.verdict(stage["name"])
            table.add_row(stage["name"], *counts, verdict.reason if verdict else "")
        console.print(table)
        console.print(money(snapshot))
    failure = run.read_json(layout.FAILURE)
    if failure is not None:
        console.print(Text(f"the step {failure['step']} failed last: {failure['message']}"), soft_wrap=True)
    if state["champion"]:
        console.print(Text(f"champion: {_champion(state['champion'])}"))


def _champion(champion: dict[str, Any] | None) -> str:
    if champion is None:
        return ""
    value = champion["value"]
    shown = f"{value:.4f}" if isinstance(value, float) else value
    return f"{champion['variant']} ({champion['alias']}, {champion['metric']} {shown})"


# `podium logs`: what a trial, or the pipeline, wrote.

POLL_SECONDS = 1.0


@command("Look", 3)
def logs(
    run: RunArgument,
    trial: Annotated[
        str | None, typer.Argument(metavar="[TRIAL]", help="A part of a log's name, such as ranking/emb25 or pipeline.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends, or Ctrl-C.")] = False,
    store: Store = "runs",
) -> None:
    """Print the log of a trial or of the pipeline; without TRIAL list which logs there are.

    Example: [b]podium logs runs/demo ranking/emb25 --follow[/b]
    """

    found = open_run(run, store)
    names = [name.removeprefix(f"{layout.LOGS}/") for name in found.storage.list(layout.LOGS)]
    if trial is None:
        for name in names:
            result(name)
        return
    # `podium status` calls a trial ranking/emb25/seed-42, its log is ranking/emb25-seed-42.log
    wanted = trial.replace("/seed-", "-seed-")
    matching = [name for name in names if name == wanted or name.removesuffix(".log") == wanted]
    matching = matching or [name for name in names if wanted in name]
    if len(matching) != 1:
        which = "no log" if not matching else f"{len(matching)} logs"
        raise UserError(f"{which} of run {found.id} match {trial!r}; it has: {', '.join(matching or names) or 'none'}")
    _print_lines(found, f"{layout.LOGS}/{matching[0]}", follow=follow)


def _print_lines(run: Run, key: str, *, follow: bool) -> None:
    shown = 0
    while True:
        ended = not follow or run.state() != "running"
        text = run.storage.read_bytes(key)
        # whole lines only, so that a character is never cut in half; the rest comes with the next look
        end = len(text) if ended else text.rfind(b"\n") + 1
        if end > shown:
            print(text[shown:end].decode(errors="replace"), end="", flush=True)
            shown = end
        if ended:
            return
        time.sleep(POLL_SECONDS)
