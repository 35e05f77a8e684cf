"""What the step select does: the stage's verdict, the report so far, and the disk given back that nobody needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from podium.components.launch.tracker import catch_up
from podium.components.policies.decide import decide
from podium.components.reporting.build import build_report
from podium.components.study.design import Selection
from podium.components.study.layout import CANCEL
from podium.components.study.run import Run
from podium.components.study.verdict import MoreTrials, Verdict, to_markdown
from podium.trainer.trial.errors import PodiumError

PARTIAL = "partial"
"""The answer where only a part of the stage was selected: nothing is decided, and nothing final is written."""
CANCELLED = "cancelled"
MOST_ARMS = 30
"""Arms with a number of their own in Kubeflow's list; the verdict's table and JSON have all of them."""


@dataclass(frozen=True)
class Selected:
    """What the step answers and shows."""

    decision: str
    """promote, stop, await, partial or cancelled; the pipeline goes on after promote alone."""
    markdown: str
    html: str
    """The report so far."""
    metrics: dict[str, float] = field(default_factory=dict)


def select(run: str, store: str, stage: str, selection: str) -> Selected:
    """Decide over a stage once its trials have results, and write the verdict; one that is there is not touched.

    Raises PodiumError where the policy still wants trials: the stage's conductor did not come to its end.
    """
    opened = Run.open(store, run)
    verdict = opened.verdict(stage)
    if verdict is None:
        if opened.storage.exists(CANCEL):
            return _undecided(opened, stage, CANCELLED, "the run was cancelled; the same command goes on")
        if leaves_out(opened, stage, Selection.from_json(selection)):
            return _undecided(opened, stage, PARTIAL, "only a part of the stage was selected; run all of it to decide")
        answer = decide(opened.study, opened.results(stage))
        if isinstance(answer, MoreTrials):
            raise PodiumError(f"stage {stage} is not finished: {answer.reason}")
        verdict = answer
        opened.write_verdict(verdict)
    print(verdict.reason, flush=True)
    if verdict.decision != "await":
        prune_checkpoints(opened, verdict)
    catch_up(opened)
    return Selected(verdict.decision, to_markdown(verdict), build_report(opened), numbers(verdict))


def leaves_out(run: Run, stage: str, selection: Selection) -> bool:
    """Whether the selection keeps some of the stage's trials from running and they have no result yet."""
    return selection.within(stage).is_part and not run.is_complete(stage)


def prune_checkpoints(run: Run, verdict: Verdict) -> None:
    """Delete the stage's full checkpoints but those of trials that were promoted; weights alone always stay.

    Until the verdict a trial may be extended; after it only what goes on can be.
    """
    kept = {ref.name for ref in verdict.promoted}
    for trial in run.trials(verdict.stage):
        if trial.variant.name in kept:
            continue
        folder = f"{trial.key.folder}/checkpoints"
        for key in run.storage.list(folder):
            if key.endswith(".pt"):
                run.storage.delete(key)


def numbers(verdict: Verdict) -> dict[str, float]:
    """The verdict's numbers for Kubeflow's list of metrics, the best arm first; what was not measured is left out."""
    return {name: value for name, value in _numbers(verdict) if value is not None and math.isfinite(value)}


def _numbers(verdict: Verdict) -> Iterator[tuple[str, float | None]]:
    ranked = sorted((row for row in verdict.ranking if row.rank is not None), key=lambda row: row.rank or 0)
    for row in ranked[:MOST_ARMS]:
        yield f"{verdict.metric} {row.variant}", row.mean
    if ranked:
        yield f"difference to {verdict.opponent.removeprefix('the ')}", ranked[0].difference
        yield "p", ranked[0].p
    for status, count in verdict.counts.items():
        yield f"trials {status}", count
    if verdict.results is not None:
        yield "spent usd", verdict.results.spent_usd


def _undecided(run: Run, stage: str, decision: str, why: str) -> Selected:
    results = run.results(stage)
    print(f"{stage}: no verdict: {why}", flush=True)
    done = f"{len(results.outcomes)} trials have a result so far."
    return Selected(decision, f"## {stage}: no verdict\n\n{why}. {done}\n", build_report(run))
