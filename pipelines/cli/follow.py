"""`podium logs`: what a trial, or the pipeline, wrote."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.console import result
from podium.pipelines.cli.find import open_run
from podium.pipelines.cli.options import RunArgument, Store

if TYPE_CHECKING:
    from podium.components.study.run import Run

POLL_SECONDS = 1.0


def logs(
    run: RunArgument,
    trial: Annotated[
        str | None, typer.Argument(metavar="[TRIAL]", help="A part of a log's name, such as ranking/emb25 or pipeline.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends, or Ctrl-C.")] = False,
    store: Store = "runs",
) -> None:
    """Print the log of a trial or of the pipeline; without TRIAL list which logs there are.

    Example: [b]podium logs runs/demo ranking/emb25 --follow[/b]
    """
    from podium.trainer.errors import UserError

    found = open_run(run, store)
    names = [name.removeprefix("logs/") for name in found.storage.list("logs")]
    if trial is None:
        for name in names:
            result(name)
        return
    # `podium status` calls a trial ranking/emb25/seed-42, its log is ranking/emb25-seed-42.log
    wanted = trial.replace("/seed-", "-seed-")
    matching = [name for name in names if name == wanted or name.removesuffix(".log") == wanted]
    matching = matching or [name for name in names if wanted in name]
    if len(matching) != 1:
        which = "no log" if not matching else f"{len(matching)} logs"
        raise UserError(f"{which} of run {found.id} match {trial!r}; it has: {', '.join(matching or names) or 'none'}")
    _print(found, f"logs/{matching[0]}", follow=follow)


def _print(run: Run, key: str, *, follow: bool) -> None:
    shown = 0
    while True:
        ended = not follow or run.state() != "running"
        text = run.storage.read_bytes(key)
        # whole lines only, so that a character is never cut in half; the rest comes with the next look
        end = len(text) if ended else text.rfind(b"\n") + 1
        if end > shown:
            print(text[shown:end].decode(errors="replace"), end="", flush=True)
            shown = end
        if ended:
            return
        time.sleep(POLL_SECONDS)
