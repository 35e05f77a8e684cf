"""`podium`: finds the commands in the modules of this package, and turns errors into exit codes.

`podium --help` takes 0.3 s of CPU, 0.13 s of it for typer, since no command's module imports a heavy library at its
top: the study's schema would add 0.6 s, the reports 1.4 s and kfp 0.6 s. Such imports are inside the commands.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import podium
from podium.pipelines import cli
from podium.pipelines.cli.options import COMMANDS, PANELS, Command, result, say
from podium.trainer.trial.errors import ExitCode, PodiumError, StorageError, UserError

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
        for panel, commands in by_panel().items():
            with formatter.section(panel):
                formatter.write_dl([(command.name, _first_sentence(command.function)) for command in commands])
        with formatter.section("Options"):
            formatter.write_dl([("--version", "Print the version and exit."), ("-h, --help", "Show this page.")])
        formatter.write_paragraph()
        for line in FIRST_STEPS:
            formatter.write_text(line)


def by_panel() -> dict[str, list[Command]]:
    """Every command, by the panels of the first page, in the order in which one meets them."""
    panels: dict[str, list[Command]] = {panel: [] for panel in PANELS}
    for each in sorted(COMMANDS, key=lambda each: each.place):
        panels.setdefault(each.panel, []).append(each)
    return panels


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
    """Import every module of this package, so that its commands are known, and make them typer's."""
    for module in pkgutil.iter_modules(cli.__path__, f"{cli.__name__}."):
        if module.name != __name__:
            importlib.import_module(module.name)
    for panel, commands in by_panel().items():
        for each in commands:
            text, _, example = (each.function.__doc__ or "").partition("\n\n    Example:")
            app.command(
                each.name,
                help=text,
                epilog="Example:" + example if example else None,
                rich_help_panel=panel,
            )(each.function)


_register()


def main() -> None:
    """Entry point of the `podium` script."""
    app()
