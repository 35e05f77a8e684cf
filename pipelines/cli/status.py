"""`podium status` and `podium list`: where a run stands, and which runs a store has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.pipelines.cli.console import result, result_json, stdout
from podium.pipelines.cli.find import all_runs, open_run
from podium.pipelines.cli.kubeflow_run import describe, find_run, is_kubeflow_id
from podium.pipelines.cli.options import Json, Store

if TYPE_CHECKING:
    from podium.components.study.run import Run

OptionalRun = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run's id in --store (ours or Kubeflow's), a run's folder, or a store (its newest run); else --store.",
    ),
]


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

    from podium.components.study import layout
    from podium.pipelines.cli.snapshot import take
    from podium.pipelines.cli.views import money, picture

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
