"""`podium report`, `export`, `compare` and `sync`: what a run left, for a reader, another tool, or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.console import result, result_json, stdout
from podium.pipelines.cli.find import all_runs, open_run
from podium.pipelines.cli.options import Json, RunArgument, Store

if TYPE_CHECKING:
    from podium.components.study.run import Run


TABLE = "table"
"""The layout of `podium export` that is about a store, not a run."""


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
        str,
        typer.Option(help="generic, a study's own layout such as param-allocation, or table: every run as one CSV."),
    ] = "generic",
    store: Store = "runs",
) -> None:
    """Write a run's results into a folder, in the files that another tool or a paper expects.

    [b]--layout table[/b] takes a store and writes one row a trial of all its runs.

    Example: [b]podium export runs/demo --layout param-allocation --to phase1[/b]
    """
    if layout == TABLE:
        result(str(_export_table(all_runs(run), to)))
        return
    from podium.components.reporting.export import export as write_export

    for path in write_export(open_run(run, store), layout, to):
        result(str(path))


def _export_table(runs: list[Run], to: Path) -> Path:
    """One CSV with the rows of every run's results.csv, made anew where a run has none yet."""
    from podium.components.reporting.build import build_report
    from podium.components.reporting.results_csv import columns_of, read_csv, to_csv

    rows: list[dict[str, str]] = []
    axes: dict[str, None] = {}
    for each in runs:
        if not each.storage.exists("report/results.csv"):
            build_report(each)
        columns, found = read_csv(each.storage.read_text("report/results.csv"))
        rows += found
        axes |= dict.fromkeys(columns[columns.index("seed") + 1 : columns.index("trial")])
    to.mkdir(parents=True, exist_ok=True)
    path = to / "all_runs.csv"
    path.write_text(to_csv(rows, columns_of(rows, axes)), encoding="utf-8")
    return path


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs' folders, stores, or ids in --store.")],
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Put runs side by side: state, winner, claim, its metric, and what each cost.

    Example: [b]podium compare runs/demo runs/other[/b]
    """
    rows = [_row(open_run(run, store)) for run in runs]
    if as_json:
        result_json({"runs": rows})
        return
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
                        for value in row.values()))  # fmt: skip
    stdout().print(table)


def _row(run: Run) -> dict[str, str | float | None]:
    verdicts = [verdict for stage in run.stages if (verdict := run.verdict(stage)) is not None]
    last = verdicts[-1] if verdicts else None
    arms = {arm.variant: arm for arm in last.ranking} if last is not None else {}
    winner = arms.get(last.winner or "") if last is not None else None
    return {
        "run": run.id,
        "state": run.state(),
        "stage": last.stage if last is not None else None,
        "winner": last.winner if last is not None else None,
        "claim": last.claim if last is not None else None,
        "metric": last.metric if last is not None else None,
        "mean": winner.mean if winner is not None else None,
        "difference": winner.difference if winner is not None else None,
        "p": winner.p if winner is not None else None,
        "usd": run.spent_usd(),
    }


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
        Sender(found.uri, stage, found.study.name, found.id, uri, artifact_root(found.store_uri)).send()
    started = {trial.key.name: trial.key.folder for trial in found.known_trials()}
    started = {name: folder for name, folder in started.items() if found.storage.exists(f"{folder}/config.json")}
    missing = [name for name, folder in started.items() if not _is_sent(found, folder, uri)]
    if missing:
        raise StorageError(
            f"MLflow at {uri} lacks {len(missing)} of {len(started)} trials: {', '.join(missing)}"
        )
    result(f"{len(started)} trials are in MLflow at {uri}")


def _is_sent(run: Run, folder: str, uri: str) -> bool:
    state = run.read_json(f"{folder}/sync.json") or {}
    ended = run.storage.exists(f"{folder}/result.json")
    return state.get("tracking_uri") == uri and bool(state.get("result_sha256") if ended else state.get("run_id"))
