"""`python -m podium.trainer`: the trainer by hand. What a study's conductor calls is `train --run-spec FOLDER`."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from podium.trainer.data.command import prepare_command
from podium.trainer.errors import PodiumError, UserError
from podium.trainer.evaluation.command import evaluate_command
from podium.trainer.tools_command import generate_command, lr_find_command, overfit_command
from podium.trainer.train_cli import TrainCommand, train

USER_ERROR, CRASH = 2, 1

_HELP = """Train, look at and use one language model.

\b
A first run, on text of your own (prepare prints the fingerprint):
  python -m podium.trainer prepare --corpus "notes/*.txt" --vocab-size 4k
  python -m podium.trainer train --preset tiny --data runs/data/FINGERPRINT --run-name first
  python -m podium.trainer generate checkpoints/first/final-model.safetensors --data runs/data/FINGERPRINT
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help=_HELP)
def trainer() -> None:
    """The group of all commands."""


app.command("train", cls=TrainCommand)(train)
app.command("prepare")(prepare_command)
app.command("evaluate")(evaluate_command)
app.command("lr-find")(lr_find_command)
app.command("overfit")(overfit_command)
app.command("generate")(generate_command)


def main() -> None:
    """Run the command line; errors that a user can mend end in words and exit code 2, never in a traceback."""
    try:
        app(prog_name="python -m podium.trainer")
    except UserError as error:
        _fail(error, USER_ERROR)
    except PodiumError as error:
        from podium.trainer.interruption import EX_TEMPFAIL, Interrupted

        _fail(error, EX_TEMPFAIL if isinstance(error, Interrupted) else CRASH)


def _fail(error: PodiumError, code: int) -> NoReturn:
    print(f"{'interrupted' if code == 75 else 'error'}: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
