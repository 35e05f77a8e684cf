"""`podium verify`: a verdict's numbers, recomputed from what it holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from podium.pipelines.cli.console import Exit, result, result_json
from podium.pipelines.cli.options import Json


def verify(
    verdict: Annotated[str, typer.Argument(metavar="VERDICT.json", help="A file in a run's verdicts folder.")],
    as_json: Json = False,
) -> None:
    """Recompute every number of a verdict from its inputs, by the run's own study, and say what differs.

    Ends with exit code 3 where something does.

    Example: [b]podium verify runs/runs/demo-1a2b3c4d/verdicts/finals.json[/b]
    """
    from podium.components.verdicts.verify import MOST_SHOWN
    from podium.components.verdicts.verify import verify as recompute

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
        raise typer.Exit(Exit.STOPPED)
