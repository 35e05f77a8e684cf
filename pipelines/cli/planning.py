"""`podium plan`, `compile` and `submit`: what a study would take, and the pipeline that a cluster runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from podium.pipelines.cli.console import result, result_json, say, stdout
from podium.pipelines.cli.options import (
    AxisName,
    Budget,
    Data,
    Gpus,
    Json,
    Launcher,
    Parallel,
    Profile,
    Seeds,
    Stages,
    StudyArgument,
    Variants,
    check_selection,
    overrides,
    selection,
)

Site = Annotated[
    str | None, typer.Option(help="A YAML file with prices: gpu_classes: {l40s: {usd_per_gpu_hour: 1.2}}.")
]


def plan(
    study: StudyArgument,
    profile: Profile = "full",
    data: Data = None,
    budget: Budget = None,
    seeds: Seeds = None,
    gpus: Gpus = None,
    stages: Stages = None,
    variants: Variants = None,
    axis: AxisName = None,
    parallel: Parallel = None,
    site: Site = None,
    as_json: Json = False,
) -> None:
    """Say what a study takes before it starts: trials, tokens, hours, dollars, GPUs, and what its rules mean.

    Nothing runs and nothing is written. The naive plan, every variant at the last stage's length, stands beside it.

    Example: [b]podium plan param-allocation --seeds 5[/b]
    """
    from podium.components.study.load import load_study
    from podium.components.study.plan import plan as make_plan

    loaded = load_study(study, profile=profile, overrides=overrides(data, budget, seeds, gpus), site=site)
    chosen = selection(stages, variants, axis, parallel)
    check_selection(loaded, chosen)
    planned = make_plan(loaded, selection=chosen).to_json()
    if as_json:
        result_json(planned)
    else:
        _print(f"{loaded.name} ({loaded.profile})", planned)


def compile_pipeline(
    study: StudyArgument,
    out: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")],
    profile: Profile = "full",
    store: Annotated[str | None, typer.Option(help="Default of the pipeline's store: s3://bucket/prefix.")] = None,
    budget: Annotated[str | None, typer.Option(help="Default of its budget in US dollars.")] = None,
    launcher: Annotated[Launcher, typer.Option(help="Default of how trials are started.")] = "process",
    as_json: Json = False,
) -> None:
    """Write a study as the pipeline YAML that Kubeflow Pipelines takes. Its inputs can be edited before each run.

    Example: [b]podium compile param-allocation -o pipeline.yaml --store s3://bucket/experiments[/b]
    """
    from podium.components.study.load import load_study, read_study_text
    from podium.pipelines.compile import compile_study
    from podium.trainer.errors import Problem, UserError

    limit = overrides(None, budget, None, None)
    loaded = load_study(study, profile=profile, overrides=limit)
    text, _ = read_study_text(study)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(Problem("--output", f"must be a file in a folder that exists, got {str(out)!r}"))
    written = compile_study(
        loaded, out, text=text, profile=profile, store=store, budget_usd=limit.budget_usd, launcher=launcher
    )
    if as_json:
        result_json({"pipeline": str(written), "study": loaded.name, "stages": list(loaded.stages)})
    else:
        result(str(written))


def _print(title: str, planned: dict[str, Any]) -> None:
    from rich.table import Table

    from podium.trainer.units import format_count, format_usd

    console = stdout()
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("stage", "trials", "tokens", "GPUs at once", "GPU hours", "hours", "dollars"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in [*planned["stages"], {**planned, "name": "all"}]:
        table.add_row(
            stage["name"],
            _trials(stage),
            _or_unknown(stage.get("tokens"), format_count),
            _or_unknown(stage.get("gpus"), str) if "gpus" in stage else "",
            _or_unknown(stage.get("gpu_hours"), "{:.1f}".format),
            _or_unknown(stage.get("hours"), "{:.1f}".format),
            _or_unknown(stage.get("usd"), format_usd),
        )
    console.print(table)
    naive, worst, usd = planned["usd_naive"], planned["usd_worst"], planned["usd"]
    console.print(f"worst case {_or_unknown(worst, format_usd)}, naive plan {_or_unknown(naive, format_usd)}")
    if naive and usd is not None:
        console.print(f"saving against the naive plan: {format_usd(naive - usd)} ({100 * (naive - usd) / naive:.0f} %)")
    for warning in planned.get("warnings", []):
        say(f"note: {warning}")


def _trials(stage: dict[str, Any]) -> str:
    low_high = stage.get("trials_range")
    return f"{low_high[0]}–{low_high[1]}" if low_high else str(stage["trials"])


def _or_unknown(value: Any, form: Any) -> str:
    return "not priced" if value is None else str(form(value))
