"""`podium run`: a study's pipeline on this machine, drawn from the store while it goes."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.components.study import layout
from podium.components.study.layout import REPORT_PAGE, TrialKey
from podium.pipelines.cli.options import (
    IDENTITY,
    SCHEDULE,
    AxisName,
    BaselineChoice,
    Budget,
    Data,
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
    command,
    overrides,
    result,
    result_json,
    say,
    selection,
)
from podium.pipelines.cli.view import View, axis_tables, open_view, sentence, take
from podium.trainer.trial.errors import ExitCode
from podium.trainer.trial.storage import join_uri, normalise_uri, open_storage

if TYPE_CHECKING:
    from podium.components.study.design import Selection
    from podium.components.study.plan import Plan
    from podium.components.study.run import Run
    from podium.components.study.schema import Study
    from podium.components.study.verdict import VariantRef, Verdict
    from podium.pipelines.local import LocalPipeline
    from podium.trainer.builtin.config import TrainConfig
    from podium.trainer.builtin.data.prepare import PrepareConfig

FILE_POLL_SECONDS, S3_POLL_SECONDS = 0.5, 5.0
"""Between two looks at the store: on S3 every look is many paid requests."""
STOP_GRACE_SECONDS = 90.0
"""For trials to save when the run is interrupted: a little more than their conductor gives them."""
DATA_STAGE = "data"
"""`--stages data` prepares the corpus and ends."""


@command("Run", 1)
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

    loaded = load_study(study, profile=profile, overrides=overrides(data, budget, seeds, gpus, baseline))
    chosen = selection(stages, variants, axis, parallel, launcher)
    if chosen.stages == (DATA_STAGE,):
        prepare_data(loaded, store, as_json=as_json, dry_run=dry_run)
        return
    if launcher == "job":
        from podium.components.launch.job_manifest import check_jobs

        check_jobs(loaded, store)
    planned = plan(loaded, selection=chosen)
    if dry_run:
        show_dry_run(loaded, planned, chosen, store, as_json=as_json)
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


def execute(run: Run, chosen: Selection, *, as_json: bool) -> ExitCode:
    """Run the pipeline, show it, and return the exit code. Raises what a step refused, and InUseError."""
    from podium.components.study.run import exit_code
    from podium.pipelines.local import start_local
    from podium.trainer.trial.lease import Lease

    state = run.state()
    if state in ("succeeded", "stopped"):
        say(f"run {run.id} is complete: nothing is left to do")
        return exit_code(state)
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
                return ExitCode.INTERRUPTED
            # a step that ends because the run was cancelled says so as a failure
            error = pipeline.error()
            if error is not None and not run.storage.exists(layout.CANCEL):
                raise error
    return exit_code(run.state())


def conclude(run: Run, code: ExitCode, *, as_json: bool) -> None:
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
        said = describe_verdict(verdicts[-1])
    return {"winner": winner, "verdict": said, "report": report_path(run)}


def describe_verdict(verdict: Verdict) -> str:
    """The claim and its figures, or why nothing was promoted."""
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
    if not run.storage.exists(REPORT_PAGE):
        return None
    path = run.storage.local_path(REPORT_PAGE)
    if path is None:
        return f"{run.uri}/{REPORT_PAGE}"
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _watch(run: Run, pipeline: LocalPipeline, view: View) -> None:
    """Show the run until its pipeline has ended."""

    local = run.storage.local_path(layout.LEASE) is not None
    events = LedgerEvents(run, view)
    while True:
        began = time.monotonic()
        ended = pipeline.poll() is not None
        events.look()
        if ended:
            return
        # looking takes at most a tenth of a processor, however many trials there are
        time.sleep(max(FILE_POLL_SECONDS if local else S3_POLL_SECONDS, 9 * (time.monotonic() - began)))


class LedgerEvents:
    """Tells each ledger entry once: those that were there before this command are not news."""

    def __init__(self, run: Run, view: View) -> None:
        self._run, self._view = run, view
        self._told = {entry.id for entry in run.ledger.entries()}

    def look(self) -> None:
        """Show the snapshot and what is new in the ledger, with a table per axis after each verdict."""

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


# --dry-run: every command and resource of a run; nothing is written.


def show_dry_run(study: Study, planned: Plan, chosen: Selection, store: str, *, as_json: bool) -> None:
    """Print the commands of the trials that are known, and what the stages after will take."""
    record = dry_run_record(study, planned, chosen, store)
    if as_json:
        result_json(record)
        return
    for line in _lines(record):
        result(line)
    say("nothing was run or written")


def _lines(record: dict[str, Any]) -> Iterator[str]:
    yield f"run {record['run_id']} in {record['store']}"
    for place in record["datasets"]:
        yield f"data {place}"
    for stage in record["stages"]:
        request = f"{stage['gpus']} GPUs" if stage["gpus"] else "the CPU"
        trials = f"{stage['trials']} trials, {stage['parallel']} at once on {request}"
        yield f"{stage['name']}: {trials}, {_usd(stage['usd'])}"
        for trial in stage["commands"]:
            yield f"  {trial['trial']}: {trial['config']}; {trial['device']}; {_usd(trial['usd'])}"
            yield f"    {shlex.join(trial['argv'])}"
        yield from (f"  {line}" for line in stage["waiting"])
        if not stage["commands"]:
            yield "  its trials are named by the verdict before"


def dry_run_record(study: Study, planned: Plan, chosen: Selection, store: str) -> dict[str, Any]:
    """The run as data: identity, datasets, and a command for each trial that is known before any verdict."""
    from podium.components.prepare_data.gpus import stage_gpus
    from podium.components.study.design import baseline, grouped_stage, is_selected, variants
    from podium.components.study.fingerprint import run_id
    from podium.components.study.trials import datasets, stage_seeds, wave_trials
    from podium.trainer.builtin.data.prepare import data_fingerprint

    uri = normalise_uri(store)
    fingerprints = sorted({data_fingerprint(config) for config in datasets(study).values()})
    identity = run_id(study, fingerprints)
    first = next(iter(study.stages))
    stages = []
    for expected in planned.to_json()["stages"]:
        declared = study.stages[expected["name"]]
        commands: list[dict[str, Any]] = []
        waiting: list[str] = []
        if expected["name"] == first:
            base = baseline(study)
            known = [(ref, seed) for seed in stage_seeds(study, first) for ref in variants(study)]
            if first == grouped_stage(study):
                known = [(asked.variant, asked.seed) for asked in wave_trials(study, first, 0, {}, [])]
                waiting = _waiting(study, first)
            run_uri = join_uri(uri, layout.run_key(identity))
            commands = [
                _command(study, first, ref, seed, run_uri)
                for ref, seed in known
                if is_selected(study, ref, chosen, base)
            ]
        stages.append(
            {
                **expected,
                "parallel": chosen.parallel or declared.resources.parallel,
                "gpus": stage_gpus(declared.resources, chosen.launcher, chosen.parallel),
                "gpu_class": declared.resources.gpu_class,
                "commands": commands,
                "waiting": waiting,
            }
        )
    return {
        "run_id": identity,
        "store": uri,
        "datasets": [join_uri(uri, layout.data_key(fingerprint)) for fingerprint in fingerprints],
        "stages": stages,
    }


def _waiting(study: Study, stage: str) -> list[str]:
    """The rows of later waves, what they take from others named and not yet known."""
    from podium.components.study.design import waves

    groups = study.stages[stage].groups
    lines = []
    for names in waves(groups)[1:]:
        for name in names:
            taken = ", ".join(f"{axis} of {source}'s best" for axis, source in groups[name].takes.items())
            for row in groups[name].rows:
                said = ", ".join(f"{axis} {value}" for axis, value in row.items())
                lines.append(
                    f"group {name}, after {', '.join(sorted(groups[name].waits_for))}: {said}; {taken}".rstrip("; ")
                )
    return lines


def _command(study: Study, stage: str, variant: VariantRef, seed: int, run_uri: str) -> dict[str, Any]:
    from podium.components.launch.launcher import trial_command
    from podium.components.study.trials import run_usd, trial_config

    key = TrialKey(stage, variant.name, seed)
    gpus = study.stages[stage].resources.gpus_per_trial
    return {
        "trial": key.name,
        "argv": trial_command(join_uri(run_uri, key.folder)),
        "config": _summary(trial_config(study, stage, variant, seed)),
        "overrides": variant.overrides,
        "device": f"{gpus} × {study.stages[stage].resources.gpu_class or 'GPU'}" if gpus else "CPU",
        "usd": run_usd(study.stages[stage].price, max(gpus, 1)),
    }


def _summary(config: TrainConfig) -> str:
    from podium.trainer.trial.section import format_count

    d_model, n_layers, n_heads, d_ff = config.model.dimensions
    shape = f"{n_layers} layers, d_model {d_model}, {n_heads} heads, d_ff {d_ff}"
    return (
        f"{shape}, {format_count(config.tokens)} tokens in {config.steps} steps, lr {config.optimizer.learning_rate:g}"
    )


def _usd(value: float | None) -> str:
    from podium.trainer.trial.section import format_usd

    return "no price declared" if value is None else format_usd(value)


# A corpus that is too small for its study is refused before a run is registered.

PLENTY_BLOCKS = 1000
"""A text of so many bytes for each token of a block has that block in every split, whatever the tokenizer: a twentieth
of it is 50 bytes a token, and ten are many. Only a smaller one is worth tokenising to see."""


def check_corpus(study: Study) -> None:
    """Refuse a missing or empty corpus, and one with a split shorter than one block. Raises DataError.

    A small corpus is tokenised for this, in a scratch folder; of a large one, and of the hub's, nothing is read twice.
    """
    from podium.components.study.design import variants
    from podium.components.study.trials import dataset_config, variant_config
    from podium.trainer.builtin.data.corpus import open_corpus
    from podium.trainer.builtin.data.manifest import check_lengths
    from podium.trainer.builtin.data.prepare import data_fingerprint, prepare

    first = next(iter(study.stages))
    lengths: dict[str, tuple[PrepareConfig, int]] = {}
    for variant in variants(study):
        config, length = dataset_config(study, variant), variant_config(study, first, variant).data.sequence_length
        key = config.model_dump_json()
        lengths[key] = (config, max(length, lengths[key][1] if key in lengths else 0))
    for config, length in lengths.values():
        kind = config.corpus.kind
        if kind.is_tokenised:
            data_fingerprint(config)  # finds the shards, and looks into those that lie here
            continue
        if kind.is_on_hub(config.corpus) or open_corpus(config.corpus).bytes > PLENTY_BLOCKS * (length + 1):
            continue
        with tempfile.TemporaryDirectory(prefix="podium-check-") as scratch:
            check_lengths(prepare(config, open_storage(scratch)), length)


# --stages data: the corpus is prepared in the store, and nothing else.


def prepare_data(study: Study, store: str, *, as_json: bool, dry_run: bool) -> None:
    """Prepare every dataset of the study. What is there already is not made again. Raises UserError, StorageError."""
    from podium.components.study.trials import datasets
    from podium.trainer.builtin.data.prepare import data_fingerprint, prepare

    uri = normalise_uri(store)
    configs = {data_fingerprint(config): config for config in datasets(study).values()}
    places = {fingerprint: join_uri(uri, layout.data_key(fingerprint)) for fingerprint in configs}
    if not dry_run:
        storage = open_storage(uri)
        storage.probe()
        for fingerprint, config in configs.items():
            manifest = prepare(config, storage)
            counts = ", ".join(f"{name} {split.tokens:,} tokens" for name, split in manifest.splits.items())
            say(f"{fingerprint}: {counts}")
    if as_json:
        result_json({"datasets": places})
    else:
        for place in places.values():
            result(place)
