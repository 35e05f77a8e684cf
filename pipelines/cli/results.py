"""`podium report`, `export` and `sync`: what a run left, for a reader, another tool, or MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.components.study.layout import REPORT_PAGE, trials_key
from podium.pipelines.cli.find import all_runs, open_run
from podium.pipelines.cli.options import Json, RunArgument, Store, command, result, result_json, stdout
from podium.pipelines.cli.run import report_path
from podium.trainer.trial.errors import ExitCode, InUseError, Problem, StorageError, UserError

if TYPE_CHECKING:
    from podium.components.study.run import Run
    from podium.components.verdicts.compare import AgainstTarget, Comparison


TABLE, PLOTS = "table", "plots"
"""Layouts of `podium export` that are not about one run."""


@command("Results", 1)
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

    found: list[Run] = all_runs(run) if every else [open_run(run, store)]
    for each in found:
        build_report(each)
        place = report_path(each)
        assert place is not None
        result(place)
    if show:
        path = found[-1].storage.local_path(REPORT_PAGE)
        typer.launch(str(path) if path is not None else f"{found[-1].uri}/{REPORT_PAGE}")


@command("Results", 2)
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
        raise UserError(Problem("--to", f"must be a folder, got the file {str(to)!r}"))
    for path in _export(run, layout, to, store):
        result(str(path))
    if layout not in (TABLE, PLOTS):
        from podium.components.reporting.studies import study_report

        for line in study_report(layout).printed(open_run(run, store)):
            result(line)


def _export(run: str, layout: str, to: Path, store: str) -> list[Path]:
    from podium.components.reporting.build import aggregate
    from podium.components.reporting.build import export as write_run
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


@command("Results", 3)
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
    from podium.components.launch.tracker import Sender, is_sent
    from podium.trainer.trial.result import CONFIG
    from podium.trainer.trial.sync import artifact_root, initialise
    from podium.trainer.trial.sync import mlflow_uri as own_uri

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
        Sender(found.uri, stage, trials_key(stage), found.study.name, found.id, uri, artifacts).send()
    started = {trial.key.name: trial.key.folder for trial in found.known_trials()}
    started = {name: folder for name, folder in started.items() if found.storage.exists(f"{folder}/{CONFIG}")}
    missing = [name for name, folder in started.items() if not is_sent(found, folder, uri)]
    if missing:
        raise StorageError(f"MLflow at {uri} lacks {len(missing)} of {len(started)} trials: {', '.join(missing)}")
    result(f"{len(started)} trials are in MLflow at {uri}")


@command("Look", 5)
def verify(
    verdict: Annotated[str, typer.Argument(metavar="VERDICT.json", help="A file in a run's verdicts folder.")],
    as_json: Json = False,
) -> None:
    """Recompute every number of a verdict from its inputs, by the run's own study, and say what differs.

    Ends with exit code 3 where something does.

    Example: [b]podium verify runs/runs/demo-1a2b3c4d/verdicts/finals.json[/b]
    """
    from podium.components.select.amend import MOST_SHOWN
    from podium.components.select.amend import verify as recompute

    found = recompute(verdict)
    if as_json:
        result_json({"ok": found.ok, **asdict(found)})
    else:
        for line in found.differences[:MOST_SHOWN]:
            result(line)
        said = "all agree" if found.ok else f"{len(found.differences)} differ"
        result(
            f"{found.stage}: {found.decision}: {found.numbers} numbers recomputed, {said}; "
            f"{found.trials} results compared with its inputs"
        )
    if not found.ok:
        raise typer.Exit(ExitCode.STOPPED)


DEFAULT_ALPHA = 0.01


@command("Look", 4)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…", help="Runs' folders, stores, ids in --store, CSV, JSON or JSONL files, speedrun folders."
        ),
    ],
    target: Annotated[float | None, typer.Option(help="Test each against this: is its mean under it?")] = None,
    sigma: Annotated[float | None, typer.Option(help="A known SD over seeds, for --target: a z test.")] = None,
    alpha: Annotated[float, typer.Option(help="One-sided level of --target.")] = DEFAULT_ALPHA,
    metric: Annotated[str, typer.Option(help="What is compared: a figure of every trial's result.")] = "final_val_loss",
    column: Annotated[str | None, typer.Option(help="Column of a table; by default the metric's.")] = None,
    variant: Annotated[str | None, typer.Option(help="The variant to compare; by default each run's winner.")] = None,
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Put runs side by side: state, winner and cost; of two, their final figures: Welch's and a moderated t test.

    A file stands for a run: a list of numbers, or a table of which --column is taken; so does a folder with the
    results.jsonl of a speedrun. With [b]--target[/b] the mean of each is tested against it, one-sided.

    Example: [b]podium compare runs/demo runs/other[/b], or
    [b]podium compare losses.csv --target 3.28 --sigma 0.0013[/b]
    """
    from podium.components.verdicts.compare import against
    from podium.components.verdicts.compare import compare as compare_figures

    _check(target, sigma, alpha)
    opened = {source: open_run(source, store) for source in runs if not is_figures(source)}
    rows = [_row(run) for run in opened.values()]
    sources: list[Run | str] = [opened.get(source, source) for source in runs]
    found, tests = None, []
    if len(runs) == 2:
        found = compare_figures(sources[0], sources[1], metric=metric, variant=variant, column=column)
    if target is not None:
        tests = [
            against(each, target, sigma=sigma, alpha=alpha, metric=metric, variant=variant, column=column)
            for each in sources
        ]
    elif len(runs) == 1 and not opened:
        from podium.components.verdicts.samples import read_sample

        sample = read_sample(runs[0], metric=metric, column=column)
        figures = {"n": len(sample.values), "mean": sample.mean, "std": sample.sd, "excluded": sample.excluded}
        result_json(figures) if as_json else result(str(figures))
        return
    if as_json:
        result_json(_plain(rows, found, tests, alpha))
        return
    if rows:
        _print_rows(rows)
    for test in tests:
        result(str(test))
    if found is not None:
        for line in _more(found):
            result(line)
        result(str(found))


def _check(target: float | None, sigma: float | None, alpha: float) -> None:

    problems = []
    if sigma is not None and target is None:
        problems.append(Problem("--sigma", "is for a test against a target; give --target too"))
    if sigma is not None and not sigma > 0:
        problems.append(Problem("--sigma", f"must be more than 0, got {sigma:g}"))
    if not 0 < alpha < 0.5:
        problems.append(Problem("--alpha", f"must be between 0 and 0.5, got {alpha:g}"))
    if problems:
        raise UserError(problems)


def is_figures(source: str) -> bool:
    """Whether the source is a file of figures or a speedrun folder, not a run of ours."""
    path = Path(source)
    return path.is_file() or (path / "results.jsonl").is_file()


def _plain(
    rows: list[dict[str, Any]], found: Comparison | None, tests: list[AgainstTarget], alpha: float
) -> dict[str, Any]:
    """One object: `n mean std statistic p passed` on top are those of the one question that was asked."""
    plain: dict[str, Any] = {"runs": rows, "comparison": found.to_json() if found is not None else None}
    if tests:
        plain["targets"] = [test.to_json() for test in tests]
    if len(tests) == 1:
        return tests[0].to_json() | plain
    if found is not None:
        sides = (found.a, found.b)
        plain |= {
            "n": [len(side.values) for side in sides],
            "mean": [side.mean for side in sides],
            "std": [side.sd for side in sides],
            "statistic": found.t,
            "p": found.p,
            "alpha": alpha,
            "passed": found.p is not None and found.p < alpha,
        }
    return plain


def _more(found: Comparison) -> list[str]:
    lines = []
    if found.interval is not None:
        low, high = found.interval
        lines.append(f"95 % interval of the difference: {low:+.4f} to {high:+.4f}")
    if found.moderated is not None:
        each = found.moderated
        lines.append(
            f"moderated t = {each.t:.2f} on {each.degrees_of_freedom} degrees of freedom, p = {each.p:.3g} "
            f"(SD {each.pooled_sd:.4f} pooled over {each.arms} arms)"
        )
    if found.effect is not None:
        effect = found.effect
        seconds = "" if effect.seconds_saved is None else f", {effect.seconds_saved:.1f} s"
        lines.append(
            f"{effect.better} reaches the other's last loss, {effect.loss:.4f}, at step {effect.steps:.0f}: "
            f"{effect.steps_saved:.0f} steps{seconds} sooner"
        )
    return lines


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("–" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    stdout().print(table)


def _row(run: Run) -> dict[str, Any]:
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
