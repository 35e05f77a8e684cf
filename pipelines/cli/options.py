"""Arguments and options that several commands share: the same words mean the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from podium.components.study.selection import Overrides, Selection

Launcher = Literal["process", "job"]

IDENTITY = "What is run (changes the run's identity)"
SCHEDULE = "Which part, and how (changes no result)"

StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A shipped study's name (see [b]podium studies[/b]) or a YAML file.")
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id in --store, a run's folder, or a store, which means its newest run."
    ),
]
Profile = Annotated[
    str, typer.Option(help="Named overrides in the study: [b]full[/b] as written, [b]smoke[/b] on two CPU cores.")
]
Store = Annotated[str, typer.Option(help="Where runs are kept: a folder or s3://bucket/prefix.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Data = Annotated[
    str | None,
    typer.Option(help="The corpus: builtin, wikitext-2, a file, folder or glob, or s3://…", rich_help_panel=IDENTITY),
]
Budget = Annotated[
    str | None, typer.Option(help="Hard limit in US dollars over all stages: 95 or $95.", rich_help_panel=IDENTITY)
]
Seeds = Annotated[
    int | None, typer.Option(help="Seeds of every stage; its min_seeds goes down to it.", rich_help_panel=IDENTITY)
]
Gpus = Annotated[int | None, typer.Option(help="GPUs a stage may use at once; 0 is the CPU.", rich_help_panel=IDENTITY)]
BaselineChoice = Annotated[
    Literal["run"] | None,
    typer.Option(
        "--baseline",
        help="[b]run[/b]: train it in every stage, though figures are recorded.",
        rich_help_panel=IDENTITY,
    ),
]
Stages = Annotated[
    str | None, typer.Option(help="Only these stages, by commas: ranking or ranking,finals.", rich_help_panel=SCHEDULE)
]
Variants = Annotated[
    str | None, typer.Option(help="Only these variants (and the baseline), by commas.", rich_help_panel=SCHEDULE)
]
AxisName = Annotated[
    str | None, typer.Option("--axis", help="Only this axis's variants and the baseline.", rich_help_panel=SCHEDULE)
]
Parallel = Annotated[int | None, typer.Option(min=1, help="Trials at once.", rich_help_panel=SCHEDULE)]


def overrides(
    data: str | None,
    budget: str | None,
    seeds: int | None,
    gpus: int | None,
    baseline: Literal["run"] | None = None,
) -> Overrides:
    """The overrides of a command line. Raises UserError for a budget that is no amount."""
    from podium.components.study.selection import Overrides
    from podium.trainer.errors import Problem, UserError
    from podium.trainer.units import parse_usd

    usd = None
    if budget is not None:
        try:
            usd = float(parse_usd(budget))
        except ValueError as error:
            raise UserError(Problem("--budget", str(error))) from None
        if usd <= 0:
            raise UserError(Problem("--budget", f"must be more than 0 dollars, got {budget}"))
    if seeds is not None and seeds < 1:
        raise UserError(Problem("--seeds", f"must be at least 1, got {seeds}"))
    if gpus is not None and gpus < 0:
        raise UserError(Problem("--gpus", f"must be 0 (the CPU) or more, got {gpus}"))
    return Overrides(seeds=seeds, gpus=gpus, data=data, budget_usd=usd, baseline=baseline)


def selection(
    stages: str | None, variants: str | None, axis: str | None, parallel: int | None, launcher: Launcher = "process"
) -> Selection:
    """The selection of a command line."""
    from podium.components.study.selection import Selection

    # a stage's name has no capitals: whoever writes A means it
    chosen = names(stages.lower() if stages else stages)
    return Selection(stages=chosen, variants=names(variants), axis=axis, parallel=parallel, launcher=launcher)


def names(text: str | None) -> tuple[str, ...] | None:
    """`a, b` as ("a", "b"); None stays None."""
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())
