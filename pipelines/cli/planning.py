"""`podium plan` and `compile`: what a study would take, and the pipeline that a cluster runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.address import InstallationFile
from podium.pipelines.cli.console import result, result_json, stdout
from podium.pipelines.cli.options import (
    AxisName,
    BaselineChoice,
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
    overrides,
    selection,
)

if TYPE_CHECKING:
    from podium.components.study.cost import Cost
    from podium.components.study.plan import Plan, StagePlan

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
    baseline: BaselineChoice = None,
    stages: Stages = None,
    variants: Variants = None,
    axis: AxisName = None,
    parallel: Parallel = None,
    site: Site = None,
    pipeline: Annotated[
        str | None,
        typer.Option(help="Check that it runs on this pipeline's graph: a compiled YAML file, or a study's name."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a study takes before it starts: trials, tokens, hours, dollars, GPUs, and what its rules mean.

    Nothing runs and nothing is written. The naive plan, every variant at the last stage's length, stands beside it.

    Example: [b]podium plan param-allocation --seeds 5[/b]
    """
    from podium.components.study.graph import other_graphs
    from podium.components.study.load import load_study
    from podium.components.study.plan import plan as make_plan
    from podium.components.study.source_state import source_state

    loaded = load_study(study, profile=profile, overrides=overrides(data, budget, seeds, gpus, baseline), site=site)
    chosen = selection(stages, variants, axis, parallel)
    if pipeline is not None:
        from podium.pipelines.graph import check_graph

        check_graph(loaded, pipeline)
    planned = make_plan(loaded, selection=chosen)
    if planned.usd and source_state().dirty:
        planned = replace(planned, warnings=[*planned.warnings, source_state().warning])
    if as_json:
        result_json(planned.to_json())
    else:
        _print(planned)
        own = other_graphs(study).get(loaded.profile)
        if own is not None:
            words = (
                f"note: profile {loaded.profile} has a graph of its own ({' → '.join(own)}); the uploaded pipeline of "
            )
            words += f"profile full does not run it: podium upload {study} --profile {loaded.profile}"
            stdout().print(words, markup=False, soft_wrap=True)


def compile_pipeline(
    study: StudyArgument,
    out: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")],
    profile: Profile = "full",
    store: Annotated[str | None, typer.Option(help="Default of the pipeline's store: s3://bucket/prefix.")] = None,
    budget: Annotated[str | None, typer.Option(help="Default of its budget in US dollars.")] = None,
    launcher: Annotated[Launcher | None, typer.Option(help="Default of how trials are started.")] = None,
    registry: Annotated[
        str | None, typer.Option("--image-registry", help="Goes before the images' names: ghcr.io/acme.")
    ] = None,
    installation: InstallationFile = None,
    as_json: Json = False,
) -> None:
    """Write a study as the pipeline YAML that Kubeflow Pipelines takes. Its inputs can be edited before each run.

    Example: [b]podium compile param-allocation -o pipeline.yaml --store s3://bucket/experiments[/b]
    """
    from podium.components.study.load import load_study, read_study_text
    from podium.pipelines.compile import Options, compile_study
    from podium.pipelines.installation import load_installation
    from podium.trainer.errors import Problem, UserError

    limit = overrides(None, budget, None, None)
    loaded = load_study(study, profile=profile, overrides=limit)
    text, _ = read_study_text(study)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(Problem("--output", f"must be a file in a folder that exists, got {str(out)!r}"))
    site = load_installation(installation)
    options = Options(
        profile=profile,
        store=store,
        budget_usd=limit.budget_usd,
        launcher=launcher,
        installation=site if registry is None else site.model_copy(update={"image_registry": registry}),
    )
    written = compile_study(loaded, out, text=text, options=options)
    if as_json:
        result_json({"pipeline": str(written), "study": loaded.name, "stages": list(loaded.stages)})
    else:
        result(str(written))


def _print(planned: Plan) -> None:
    from rich.table import Table

    from podium.trainer.units import format_count, format_usd

    console = stdout()
    table = Table(title=f"{planned.study} ({planned.profile})", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "trials", "tokens", "at once", "GPU hours", "hours", "dollars", "so far"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    table.add_row("shakedown", str(planned.shakedown.trials), "", "", *_figures(planned.shakedown))
    for stage in planned.stages:
        low_high = stage.trials_range
        trials = f"{low_high[0]}–{low_high[1]}" if low_high else str(stage.trials)
        tokens = f"{format_count(stage.tokens)}"
        so_far = _priced(stage.usd_so_far) + ("" if stage.affordable else "!")
        table.add_row(stage.name, trials, tokens, _devices(stage), *_figures(stage), so_far)
    table.add_row("evaluation", str(planned.evaluation.trials), "", "", *_figures(planned.evaluation))
    table.add_row("all", str(planned.trials), format_count(planned.tokens), "", *_figures(planned), style="bold")
    console.print(table)
    branches = Table("if it ends with", "dollars", "", box=None, pad_edge=False)
    for branch in planned.branches:
        branches.add_row(branch["name"], _priced(branch["usd"]), "" if branch["affordable"] else "not affordable")
    branches.add_row("worst case", _priced(planned.usd_worst))
    if planned.ranks:
        branches.add_row("naive plan: every variant at the last stage's length", _priced(planned.usd_naive))
    console.print(branches)
    if planned.saving is not None:
        console.print(f"saving against the naive plan: {100 * planned.saving:.0f} %")
    if planned.budget_usd is not None:
        console.print(f"budget: {format_usd(planned.budget_usd)}" + ("" if planned.affordable else ": not affordable"))
    for warning in planned.warnings:
        console.print(f"note: {warning}", markup=False, soft_wrap=True)


def _figures(part: Plan | StagePlan | Cost) -> list[str]:
    hours = ["not known" if value is None else f"{value:.1f}" for value in (part.gpu_hours, part.hours)]
    return [*hours, _priced(part.usd)]


def _devices(stage: StagePlan) -> str:
    return f"{stage.gpus} × {stage.gpu_class or 'GPU'}" if stage.gpus else f"{stage.parallel} × CPU"


def _priced(usd: float | None) -> str:
    from podium.trainer.units import format_usd

    return "not priced" if usd is None else format_usd(usd)
