"""`podium plan` and `compile`: what a study would take, and the pipeline that a cluster runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.pipelines.cli.options import (
    AxisName,
    BaselineChoice,
    Budget,
    Data,
    Gpus,
    InstallationFile,
    Json,
    Launcher,
    Parallel,
    Profile,
    Seeds,
    Stages,
    StudyArgument,
    Variants,
    command,
    overrides,
    result,
    result_json,
    say,
    selection,
    stdout,
)
from podium.trainer.trial.errors import Problem, UserError

if TYPE_CHECKING:
    from podium.components.study.plan import Plan, StagePlan
    from podium.components.study.trials import Cost


Site = Annotated[
    str | None, typer.Option(help="A YAML file with prices: gpu_classes: {l40s: {usd_per_gpu_hour: 1.2}}.")
]


@command("Before a run", 1)
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
    from podium.components.study.load import load_study, other_graphs
    from podium.components.study.plan import plan as make_plan
    from podium.components.study.registration import source_state

    loaded = load_study(study, profile=profile, overrides=overrides(data, budget, seeds, gpus, baseline), site=site)
    chosen = selection(stages, variants, axis, parallel)
    if pipeline is not None:
        from podium.pipelines.compile import check_graph

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


@command("Before a run", 2, name="compile")
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

    from podium.trainer.trial.section import format_count, format_usd

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
    from podium.trainer.trial.section import format_usd

    return "not priced" if usd is None else format_usd(usd)


# Shipped studies, and studies of one's own.

TEMPLATE = Path(__file__).parent / "new_study.yaml"


@command("Studies", 1)
def studies(as_json: Json = False) -> None:
    """List the studies that come with Podium, each with its question and profiles.

    Example: [b]podium studies[/b]
    """
    found = [_described(name, path) for name, path in _shipped().items()]
    if as_json:
        result_json({"studies": found})
        return
    from rich.table import Table

    table = Table("study", "question", "stages", "profiles", box=None, pad_edge=False)
    for study in found:
        table.add_row(study["name"], study["question"], " → ".join(study["stages"]), ", ".join(study["profiles"]))
    stdout().print(table)


@command("Studies", 2)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study, and of the file NAME.yaml.")],
    to: Annotated[Path | None, typer.Option(help="Where to write it; by default NAME.yaml here.")] = None,
) -> None:
    """Write a commented study file that validates and runs: change it line by line.

    Example: [b]podium new width-sweep[/b], then [b]podium run width-sweep.yaml --profile smoke[/b]
    """
    from podium.components.study.load import load_study

    path = to or Path(f"{name}.yaml")
    text = TEMPLATE.read_text(encoding="utf-8").replace("name: my-study", f"name: {name}", 1)
    load_study(text)
    if path.exists():
        raise UserError(Problem(str(path), "is there already; give another name, or --to FILE"))
    if not path.parent.is_dir():
        raise UserError(Problem(str(path), "its folder does not exist"))
    path.write_text(text, encoding="utf-8")
    result(str(path))
    say(f"next: podium plan {path} --profile smoke; podium run {path} --profile smoke")


@command("Studies", 3)
def validate(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a shipped study's name.")],
    as_json: Json = False,
) -> None:
    """Check a study in each of its profiles, and list every problem at once. Nothing is written.

    Example: [b]podium validate width-sweep.yaml[/b]
    """
    from podium.components.study.load import load_study

    problems: list[Problem] = []
    valid: list[str] = []
    for profile in profiles(study):
        try:
            load_study(study, profile=profile)
            valid.append(profile)
        except UserError as error:
            # One mistake outside the profiles is found in each of them: name it once.
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise UserError(problems, source=study)
    if as_json:
        result_json({"study": study, "valid": True, "profiles": valid})
    else:
        result(f"{study}: valid (profiles: {', '.join(valid)})")


def profiles(source: str) -> list[str]:
    """The names of a study's profiles, `full` first. Raises UserError for an unknown study or broken YAML."""
    from podium.components.study.load import read_study_text
    from podium.trainer.trial.yaml_text import parse_yaml

    text, name = read_study_text(source)
    data = parse_yaml(text, name)
    declared = data.get("profiles") if isinstance(data, dict) else None
    return ["full", *(name for name in declared or {} if name != "full")] if isinstance(declared, dict) else ["full"]


def _shipped() -> dict[str, Path]:
    from podium.components.study.load import shipped_studies

    return shipped_studies()


def _described(name: str, path: Path) -> dict[str, Any]:
    from podium.components.study.load import load_study

    study = load_study(str(path))
    return {
        "name": name,
        "title": study.title,
        "question": " ".join(study.question.split()),
        "stages": list(study.stages),
        "profiles": profiles(name),
    }
