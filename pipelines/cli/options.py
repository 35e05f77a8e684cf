"""What every command is made of: its registration, the arguments and options that several share, and its output.

A command is one function in one module of this package, with `command` above it; `main` finds it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer

from podium.pipelines.kubeflow.address import PASSWORD, Address
from podium.trainer.trial.errors import Problem, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from podium.components.study.design import Overrides, Selection


PANELS = ("Studies", "Before a run", "Run", "Decide", "Look", "Results", "Store and cluster")
"""Parts of the first page, in order."""


@dataclass(frozen=True)
class Command:
    """A command of `podium`."""

    name: str
    """What a user types."""
    function: Callable[..., None]
    panel: str
    place: int


P = ParamSpec("P")

COMMANDS: list[Command] = []
"""Every command whose module has been imported."""


def command(
    panel: str, place: int = 99, *, name: str | None = None
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Make the function a command, shown in this panel of the first page, at this place in it.

    Its docstring is its help: the first sentence on the first page, an `Example:` at the end. `name` is for a command
    that is named by a word of Python's own.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        COMMANDS.append(Command(name or function.__name__, function, panel, place))
        return function

    return register


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
    from podium.components.study.design import Overrides
    from podium.trainer.trial.section import parse_usd

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
    from podium.components.study.design import Selection

    # a stage's name has no capitals: whoever writes A means it
    chosen = names(stages.lower() if stages else stages)
    return Selection(stages=chosen, variants=names(variants), axis=axis, parallel=parallel, launcher=launcher)


def names(text: str | None) -> tuple[str, ...] | None:
    """`a, b` as ("a", "b"); None stays None."""
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


# Options for reaching Kubeflow, each with its environment variable.

PANEL = "Kubeflow, and who asks"

Host = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_ENDPOINT",
        rich_help_panel=PANEL,
        help="Kubeflow's API: https://kubeflow.example/pipeline, or a KFP address; by default the cluster's own.",
    ),
]
Ui = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_UI_ENDPOINT", rich_help_panel=PANEL, help="Kubeflow's pages for links, if elsewhere."
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_KFP_NAMESPACE", rich_help_panel=PANEL, help="Your profile's namespace, where Kubeflow has many."
    ),
]
Token = Annotated[
    str | None, typer.Option(envvar="PODIUM_KFP_TOKEN", rich_help_panel=PANEL, help="Bearer token of the API.")
]
Cookie = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_KFP_COOKIE", rich_help_panel=PANEL, help="Session's cookie, NAME=VALUE, as the browser has it."
    ),
]
Username = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_KFP_USERNAME",
        rich_help_panel=PANEL,
        help="Sign in at Kubeflow's login page (Dex); the password is in PODIUM_KFP_PASSWORD, else it is asked for.",
    ),
]
PortForward = Annotated[
    bool,
    typer.Option("--port-forward", rich_help_panel=PANEL, help="Reach the API by kubectl and the kubeconfig."),
]
KubeflowNamespace = Annotated[str, typer.Option(rich_help_panel=PANEL, help="Where Kubeflow Pipelines itself runs.")]
Ca = Annotated[
    str | None, typer.Option("--ca", rich_help_panel=PANEL, help="File of the authority that signed the host's TLS.")
]
Insecure = Annotated[bool, typer.Option("--insecure", rich_help_panel=PANEL, help="Take any TLS certificate.")]
InstallationFile = Annotated[
    str | None,
    typer.Option(
        "--installation",
        envvar="PODIUM_INSTALLATION",
        help="YAML of what an installation sets: store, images, pull settings, GPU classes; the chart writes one.",
    ),
]


def address(
    *,
    host: str | None,
    ui: str | None = None,
    namespace: str | None = None,
    token: str | None = None,
    cookie: str | None = None,
    username: str | None = None,
    port_forward: bool = False,
    kubeflow_namespace: str = "kubeflow",
    ca: str | None = None,
    insecure: bool = False,
) -> Address:
    """The address that the options give; asks a person for a password that the environment does not have."""

    password = os.environ.get(PASSWORD)
    if username and not password and sys.stdin.isatty():
        password = typer.prompt(f"Password of {username}", hide_input=True, err=True)
    return Address(
        # an address in the environment gives way to the option, which says what is wanted now
        host=None if port_forward and host == os.environ.get("KF_PIPELINES_ENDPOINT") else host,
        ui=ui,
        namespace=namespace,
        token=token,
        cookie=cookie,
        username=username,
        password=password,
        port_forward=port_forward,
        kubeflow_namespace=kubeflow_namespace,
        ca=ca,
        insecure=insecure,
    )


# Output: results on stdout, everything else on stderr.


def stdout() -> Console:
    """The console for results. Made at the call, so that it follows a redirected sys.stdout."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console for progress and errors."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    # Tables are wide and a pipe has no width: 80 columns would cut names that someone wants to grep for.
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False)


def say(text: str) -> None:
    """One plain line on stderr."""
    print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """One plain line on stdout, never wrapped or styled: what a script reads."""
    print(text, flush=True)


def result_json(value: Any) -> None:
    """The one object that `--json` promises on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)
