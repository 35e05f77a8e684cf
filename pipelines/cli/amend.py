"""`podium approve`, `override` and `extend`: a person's decisions on a run, put on its ledger."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from podium.pipelines.cli.console import result, result_json, say
from podium.pipelines.cli.find import open_run
from podium.pipelines.cli.options import Json, RunArgument, Store

if TYPE_CHECKING:
    from podium.components.study.run import Run
    from podium.components.verdicts.verdict import Verdict

GO_ON = "the same podium run goes on from here"

By = Annotated[str | None, typer.Option(help="Who decides; by default the user of this machine.")]
Why = Annotated[str, typer.Option(help="Why, for the ledger and the report.")]


def approve(run: RunArgument, because: Why = "", by: By = None, store: Store = "runs", as_json: Json = False) -> None:
    """Let a verdict take effect that awaits approval. The same [b]podium run[/b] then goes on.

    Example: [b]podium approve runs/demo --because "budget agreed"[/b]
    """
    from podium.components.verdicts.amend import approve as amend

    found = open_run(run, store)
    _tell(found, amend(found, because=because, by=by or _user()), as_json=as_json)


def override(
    run: RunArgument,
    promote: Annotated[str, typer.Option(help="The variant that goes on.")],
    because: Why,
    by: By = None,
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Let another variant go on than the last verdict chose. What it wins after that is exploratory.

    Example: [b]podium override runs/demo --promote palm --because "the winner is too slow to serve"[/b]
    """
    from podium.components.verdicts.amend import override as amend

    found = open_run(run, store)
    _tell(found, amend(found, promote, because=because, by=by or _user()), as_json=as_json)


def extend(
    run: RunArgument,
    seeds: Annotated[int, typer.Option(help="Fresh seeds for every variant of the last stage that was decided.")],
    because: Why,
    by: By = None,
    store: Store = "runs",
    as_json: Json = False,
) -> None:
    """Add seeds to the last stage that was decided; it is decided again. What it shows then is exploratory.

    Example: [b]podium extend runs/demo --seeds 3 --because "p was 0.06"[/b]
    """
    from podium.components.verdicts.amend import extend as amend

    found = open_run(run, store)
    fresh = amend(found, seeds, because=because, by=by or _user())
    if as_json:
        result_json({"run": found.id, "seeds": fresh, "state": found.state()})
    else:
        result(f"{found.id}: extended by the seeds {', '.join(map(str, fresh))}")
        say(GO_ON)


def _tell(run: Run, verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        promoted = [ref.name for ref in verdict.promoted]
        plain = {"stage": verdict.stage, "decision": verdict.decision, "promoted": promoted, "claim": verdict.claim}
        result_json({"run": run.id, **plain, "reason": verdict.reason, "state": run.state()})
    else:
        result(f"{run.id}: {verdict.reason}")
        say(GO_ON)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return ""
