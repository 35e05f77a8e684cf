"""`podium report`, `export` and `sync`: what a run left, for a reader, another tool, or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.console import result
from podium.pipelines.cli.find import all_runs, open_run
from podium.pipelines.cli.options import RunArgument, Store

if TYPE_CHECKING:
    from podium.components.study.run import Run


TABLE, PLOTS = "table", "plots"
"""Layouts of `podium export` that are not about one run."""


def report(
    run: RunArgument,
    every: Annotated[bool, typer.Option("--all", help="Of every run of the store.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    store: Store = "runs",
) -> None:
    """Build a run's report anew from its store: tables, plots, CSVs and one HTML file. Works at any time.

    Example: [b]podium report runs/demo --open[/b]
    """
    from podium.components.reporting.build import build_report
    from podium.pipelines.cli.run import report_path

    found: list[Run] = all_runs(run) if every else [open_run(run, store)]
    for each in found:
        build_report(each)
        place = report_path(each)
        assert place is not None
        result(place)
    if show:
        path = found[-1].storage.local_path("report/index.html")
        typer.launch(str(path) if path is not None else f"{found[-1].uri}/report/index.html")


def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option(help="Folder to write into; it is made.")],
    layout: Annotated[
        str, typer.Option(help="generic, param-allocation, speedrun, table or plots: see above.")
    ] = "generic",
    store: Store = "runs",
) -> None:
    """Write a run's results into a folder, in the files that another tool or a paper expects.

    [b]--layout table[/b] takes a store and writes all_runs.csv, a row a trial of all its runs. [b]--layout plots[/b]
    takes any results CSV in place of RUN and draws every figure that it allows. [b]--layout speedrun[/b] makes a folder
    for each variant at each stage, which [b]podium compare[/b] takes too.

    Example: [b]podium export runs/demo --layout param-allocation --to phase1[/b]
    """
    if to.exists() and not to.is_dir():
        from podium.trainer.errors import Problem, UserError

        raise UserError(Problem("--to", f"must be a folder, got the file {str(to)!r}"))
    for path in _export(run, layout, to, store):
        result(str(path))
    if layout == "speedrun":
        from podium.components.reporting.layouts.speedrun import printed

        for line in printed(open_run(run, store)):
            result(line)


def _export(run: str, layout: str, to: Path, store: str) -> list[Path]:
    from podium.components.reporting.export import aggregate
    from podium.components.reporting.export import export as write_run
    from podium.components.reporting.from_csv import plots_from_csv

    if layout == PLOTS:
        return plots_from_csv(Path(run), to)
    if layout != TABLE:
        return write_run(open_run(run, store), layout, to)
    text = aggregate(all_runs(run))
    to.mkdir(parents=True, exist_ok=True)
    path = to / "all_runs.csv"
    path.write_text(text, encoding="utf-8")
    return [path]


def sync(
    run: RunArgument,
    mlflow_uri: Annotated[
        str | None, typer.Option(help="The tracking server, or sqlite:///path; by default the store's own.")
    ] = None,
    store: Store = "runs",
) -> None:
    """Send what MLflow lacks of a run: metrics, configs and results. What it has is not sent twice.

    Example: [b]podium sync runs/demo --mlflow-uri http://mlflow.example:5000[/b]
    """
    from podium.components.launch.catch_up import is_sent
    from podium.components.launch.tracker import Sender
    from podium.trainer.errors import InUseError, StorageError
    from podium.trainer.mlflow_server import artifact_root, initialise
    from podium.trainer.mlflow_server import mlflow_uri as own_uri

    found = open_run(run, store)
    if found.state() == "running":
        raise InUseError(f"run {found.id} is going on and sends to MLflow itself; sync it when it has ended")
    uri = mlflow_uri or own_uri(found.store_uri)
    try:
        initialise(uri)
    except Exception as error:  # noqa: BLE001  MLflow raises what its database raises
        raise StorageError(f"MLflow at {uri} does not serve: {error}") from None
    for stage in found.stages:
        artifacts = artifact_root(found.store_uri)
        Sender(found.uri, stage, f"trials/{stage}", found.study.name, found.id, uri, artifacts).send()
    started = {trial.key.name: trial.key.folder for trial in found.known_trials()}
    started = {name: folder for name, folder in started.items() if found.storage.exists(f"{folder}/config.json")}
    missing = [name for name, folder in started.items() if not is_sent(found, folder, uri)]
    if missing:
        raise StorageError(f"MLflow at {uri} lacks {len(missing)} of {len(started)} trials: {', '.join(missing)}")
    result(f"{len(started)} trials are in MLflow at {uri}")
