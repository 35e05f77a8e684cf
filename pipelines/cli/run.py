"""`podium run`: a study's pipeline on this machine, drawn from the store while it goes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.pipelines.cli.options import (
    IDENTITY,
    OF_STATE,
    SCHEDULE,
    AxisName,
    BaselineChoice,
    Budget,
    Data,
    Exit,
    Gpus,
    Json,
    Launcher,
    Parallel,
    Profile,
    Seeds,
    Stages,
    Store,
    StudyArgument,
    Variants,
    overrides,
    result,
    result_json,
    say,
    selection,
)

if TYPE_CHECKING:
    from podium.components.study.design import Selection
    from podium.components.study.run import Run
    from podium.components.verdicts.verdict import Verdict
    from podium.pipelines.cli.look import View
    from podium.pipelines.local import LocalPipeline

FILE_POLL_SECONDS, S3_POLL_SECONDS = 0.5, 5.0
"""Between two looks at the store: on S3 every look is many paid requests."""
STOP_GRACE_SECONDS = 90.0
"""For trials to save when the run is interrupted: a little more than their conductor gives them."""
DATA_STAGE = "data"
"""`--stages data` prepares the corpus and ends."""


def run(
    study: StudyArgument,
    profile: Profile = "full",
    store: Store = "runs",
    data: Data = None,
    budget: Budget = None,
    seeds: Seeds = None,
    gpus: Gpus = None,
    baseline: BaselineChoice = None,
    new: Annotated[
        bool, typer.Option("--new", help="Make another run beside the one that is there.", rich_help_panel=IDENTITY)
    ] = False,
    stages: Stages = None,
    variants: Variants = None,
    axis: AxisName = None,
    parallel: Parallel = None,
    launcher: Annotated[Launcher, typer.Option(help="How trials are started.", rich_help_panel=SCHEDULE)] = "process",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every command and resource; run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run a study on this machine: data, shakedown, stages, verdicts, evaluation, report, champion.

    The same command again finishes what is missing and repeats nothing, also after Ctrl-C, a crash or a reboot.
    [b]--stages data[/b] only prepares the corpus.

    Example: [b]podium run param-allocation --profile smoke[/b], or a part of it:
    [b]podium run param-allocation --stages ranking --axis embedding[/b]
    """
    from podium.components.study.load import load_study, read_study_text
    from podium.components.study.plan import plan
    from podium.components.study.registration import source_state
    from podium.components.study.run import Run
    from podium.pipelines.cli.plan import check_corpus

    loaded = load_study(study, profile=profile, overrides=overrides(data, budget, seeds, gpus, baseline))
    chosen = selection(stages, variants, axis, parallel, launcher)
    if chosen.stages == (DATA_STAGE,):
        from podium.pipelines.cli.plan import prepare_data

        prepare_data(loaded, store, as_json=as_json, dry_run=dry_run)
        return
    if launcher == "job":
        from podium.components.launch.job_manifest import check_jobs

        check_jobs(loaded, store)
    planned = plan(loaded, selection=chosen)
    if dry_run:
        from podium.pipelines.cli.plan import show

        show(loaded, planned, chosen, store, as_json=as_json)
        return
    check_corpus(loaded)
    warning = source_state().warning
    if warning and planned.usd:
        say(f"warning: {warning}")
    text, _ = read_study_text(study)
    made = Run.create(store, loaded, profile, chosen, text, new=new)
    code = execute(made, chosen, as_json=as_json)
    conclude(made, code, as_json=as_json)
    raise typer.Exit(code)


def execute(run: Run, chosen: Selection, *, as_json: bool) -> int:
    """Run the pipeline, show it, and return the exit code. Raises what a step refused, and InUseError."""
    from podium.components.study import layout
    from podium.pipelines.cli.look import open_view
    from podium.pipelines.local import start_local
    from podium.trainer.trial.lease import Lease

    state = run.state()
    if state in ("succeeded", "stopped"):
        say(f"run {run.id} is complete: nothing is left to do")
        return OF_STATE[state]
    with Lease(run.storage, layout.LEASE, what=f"run {run.id}") as lease:
        run.storage.delete(layout.CANCEL)
        say(f"run {run.id} in {run.uri}")
        with _terminate_as_interrupt(), start_local(run, selection=chosen, token=lease.token) as pipeline:
            try:
                with open_view(as_json=as_json) as view:
                    _watch(run, pipeline, view)
            except KeyboardInterrupt:
                say("interrupted: asking trials to save (Ctrl-C again ends them at once)")
                pipeline.stop(STOP_GRACE_SECONDS)
                say("the same command goes on from where it stopped")
                return Exit.INTERRUPTED
            # a step that ends because the run was cancelled says so as a failure
            if pipeline.failure is not None and not run.storage.exists(layout.CANCEL):
                raise pipeline.failure.error()
    return OF_STATE[run.state()]


def conclude(run: Run, code: int, *, as_json: bool) -> None:
    """Print what came out: the object of `--json`, or as the last line winner, verdict and path of the report."""
    summary = summarise(run)
    if as_json:
        result_json({**run.status(), "exit_code": code, **summary})
        return
    from podium.components.reporting.studies import study_report

    for line in study_report(run.study.layout).printed(run):
        result(line)
    where = summary["report"] or "none yet"
    result(f"winner: {summary['winner'] or 'none'} · {summary['verdict']} · report: {where}")


def summarise(run: Run) -> dict[str, Any]:
    """Winner, verdict in a few words, and path of the report; None for what there is not yet."""
    from podium.components.study import layout

    gate = run.read_json(layout.SHAKEDOWN)
    verdicts = [verdict for stage in run.stages if (verdict := run.verdict(stage)) is not None]
    winner = None
    if gate is not None and not gate.get("passed"):
        said = f"the shakedown failed: {gate.get('reason')}"
    elif not verdicts:
        said = "no verdict yet, the same command goes on"
    elif len(verdicts) < len(run.stages) and verdicts[-1].decision == "promote":
        said = f"{verdicts[-1].stage} promotes {len(verdicts[-1].promoted)}, the same command goes on"
    else:
        winner = verdicts[-1].winner if verdicts[-1].decision == "promote" else None
        said = _in_words(verdicts[-1])
    return {"winner": winner, "verdict": said, "report": report_path(run)}


def _in_words(verdict: Verdict) -> str:
    arm = next((arm for arm in verdict.ranking if arm.variant == verdict.winner), None)
    if verdict.decision != "promote" or arm is None or arm.mean is None:
        return verdict.reason
    claim = verdict.claim if verdict.claim != "none" else verdict.decision
    words = [f"{claim}: {verdict.metric} {arm.mean:.4f}"]
    if arm.difference is not None:
        words.append(f"{arm.difference:+.4f} against {verdict.opponent}")
    if arm.p is not None:
        words.append(f"p = {arm.p:.2g}")
    return ", ".join(words)


def report_path(run: Run) -> str | None:
    """Where the report is: a path as short as it can be, or a URI; None where there is none yet."""
    key = "report/index.html"
    if not run.storage.exists(key):
        return None
    path = run.storage.local_path(key)
    if path is None:
        return f"{run.uri}/{key}"
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _watch(run: Run, pipeline: LocalPipeline, view: View) -> None:
    """Show the run until its pipeline has ended."""
    from podium.components.study import layout

    local = run.storage.local_path(layout.LEASE) is not None
    teller = Teller(run, view)
    while True:
        began = time.monotonic()
        ended = pipeline.poll() is not None
        teller.look()
        if ended:
            return
        # looking takes at most a tenth of a processor, however many trials there are
        time.sleep(max(FILE_POLL_SECONDS if local else S3_POLL_SECONDS, 9 * (time.monotonic() - began)))


class Teller:
    """Tells each ledger entry once: those that were there before this command are not news."""

    def __init__(self, run: Run, view: View) -> None:
        self._run, self._view = run, view
        self._told = {entry.id for entry in run.ledger.entries()}

    def look(self) -> None:
        """Show the snapshot and what is new in the ledger, with a table per axis after each verdict."""
        from podium.pipelines.cli.look import axis_tables, sentence, take

        for entry in self._run.ledger.entries():
            if entry.id in self._told:
                continue
            self._told.add(entry.id)
            if entry.kind != "verdict":
                self._view.event(sentence(entry))
                continue
            self._view.emit(sentence(entry))
            for table in axis_tables(self._run, entry.key.partition("/")[0]):
                self._view.emit(table)
        self._view.show(take(self._run))


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM (a closing terminal, a supervisor) saves as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
