"""`podium`: the commands in the order in which one meets them, and the one place where errors become exit codes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import podium
from podium.pipelines.cli import control, doctor, look, plan, power, results, run, submit
from podium.pipelines.cli.options import result, say
from podium.trainer.trial.errors import ExitCode, PodiumError, StorageError, UserError

PANELS: dict[str, list[Callable[..., None]]] = {
    "Studies": [plan.studies, plan.new, plan.validate],
    "Before a run": [plan.plan, plan.compile_pipeline, power.power],
    "Run": [run.run, submit.submit, submit.upload, control.cancel],
    "Decide": [control.approve, control.override, control.extend],
    "Look": [look.status, look.list_runs, look.logs, results.compare, results.verify],
    "Results": [results.report, results.export, results.sync],
    "Store and cluster": [control.gc, doctor.doctor],
}
NAMES = {"list_runs": "list", "compile_pipeline": "compile"}
"""Commands whose names are Python's own words."""

FIRST_STEPS = (
    "podium COMMAND --help explains each with an example. First steps: podium studies, then podium run "
    "param-allocation --profile smoke, then podium report runs --open.",
    "Exit codes: 0 concluded, 2 your error, 3 stopped by verdict, 4 gate failed, 5 incomplete or awaiting approval "
    "(run again to go on), 130 interrupted.",
)


class Commands(TyperGroup):
    """The group of all commands: what a user can mend is one clear message and exit code 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command and translate what it raises."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except Exception as error:
            if not isinstance(error, PodiumError) or os.environ.get("PODIUM_DEBUG"):
                raise
            say(f"podium: {error}")
            # A step that broke by no mistake of the user's leaves a run that the same command takes up again.
            mendable = isinstance(error, UserError | StorageError)
            raise typer.Exit(ExitCode.USER_ERROR if mendable else ExitCode.INCOMPLETE) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the first page plainly: typer's own takes 0.3 s to import what it draws with."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(self.help)
        for panel, commands in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(name_of(command), _first_sentence(command)) for command in commands])
        with formatter.section("Options"):
            formatter.write_dl([("--version", "Print the version and exit."), ("-h, --help", "Show this page.")])
        formatter.write_paragraph()
        for line in FIRST_STEPS:
            formatter.write_text(line)


def name_of(command: Callable[..., None]) -> str:
    """What a user types for the command."""
    return NAMES.get(command.__name__, command.__name__)


def _first_sentence(command: Callable[..., None]) -> str:
    text = " ".join((command.__doc__ or "").partition("\n\n")[0].split())
    return text.partition(": ")[0].partition(". ")[0].rstrip(".")


def _version(asked: bool) -> None:
    if asked:
        result(f"podium {podium.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    name="podium",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Staged language-model training experiments: screen cheaply, promote few, prove the winner."""
    if ctx.invoked_subcommand is None:
        result(ctx.get_help())


def _register() -> None:
    for panel, commands in PANELS.items():
        for command in commands:
            text, _, example = (command.__doc__ or "").partition("\n\n    Example:")
            app.command(
                name_of(command),
                help=text,
                epilog="Example:" + example if example else None,
                rich_help_panel=panel,
            )(command)


_register()


def main() -> None:
    """Entry point of the `podium` script."""
    app()
