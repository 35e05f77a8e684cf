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
        str, typer.Option(help="generic, a study's own such as param-allocation, or table or plots: see above.")
    ] = "generic",
    store: Store = "runs",
) -> None:
    """Write a run's results into a folder, in the files that another tool or a paper expects.

    [b]--layout table[/b] takes a store and writes all_runs.csv, a row a trial of all its runs. [b]--layout plots[/b]
    takes any results CSV in place of RUN and draws every figure that it allows.

    Example: [b]podium export runs/demo --layout param-allocation --to phase1[/b]
    """
    if to.exists() and not to.is_dir():
        from podium.trainer.errors import Problem, UserError

        raise UserError(Problem("--to", f"must be a folder, got the file {str(to)!r}"))
    for path in _export(run, layout, to, store):
        result(str(path))


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


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Runs' folders, stores, ids in --store, or files of numbers.")
    ],
    metric: Annotated[str, typer.Option(help="What is compared: a figure of every trial's result.")] = "final_val_loss",
    variant: Annotated[str | None, typer.Option(help="The variant to compare; by default each run's winner.")] = None,
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Put runs side by side: state, winner, claim and what each cost; of two, their final figures by Welch's t test.

    A file with a JSON list of numbers, or one number a line, can stand for a run.

    Example: [b]podium compare runs/demo runs/other[/b]
    """
    from podium.components.verdicts.compare import compare as compare_figures

    opened = {source: open_run(source, store) for source in runs if not Path(source).is_file()}
    rows = [_row(run) for run in opened.values()]
    found = None
    if len(runs) == 2:
        found = compare_figures(*(opened.get(source, source) for source in runs), metric=metric, variant=variant)
    if as_json:
        result_json({"runs": rows, "comparison": found.to_json() if found is not None else None})
        return
    if rows:
        _print_rows(rows)
    if found is not None:
        result(str(found))


def _print_rows(rows: list[dict[str, str | float | None]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        cells = [
            "–" if value is None else f"{value:.4f}" if isinstance(value, float) else value for value in row.values()
        ]
        table.add_row(*cells)
    stdout().print(table)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


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
        artifacts = artifact_root(found.store_uri)
        Sender(found.uri, stage, f"trials/{stage}", found.study.name, found.id, uri, artifacts).send()
    started = {trial.key.name: trial.key.folder for trial in found.known_trials()}
    started = {name: folder for name, folder in started.items() if found.storage.exists(f"{folder}/config.json")}
    missing = [name for name, folder in started.items() if not _is_sent(found, folder, uri)]
    if missing:
        raise StorageError(f"MLflow at {uri} lacks {len(missing)} of {len(started)} trials: {', '.join(missing)}")
    result(f"{len(started)} trials are in MLflow at {uri}")


def _is_sent(run: Run, folder: str, uri: str) -> bool:
    state = run.read_json(f"{folder}/sync.json") or {}
    ended = run.storage.exists(f"{folder}/result.json")
    return state.get("tracking_uri") == uri and bool(state.get("result_sha256") if ended else state.get("run_id"))
