"""What the step evaluate does: each finalist measured by one process of the trainer, one at a time.

One at a time, since latency and throughput mean something only with the device to itself. The files go straight into
the run's `evaluation/<variant>/`, `metrics.json` last: a finalist that has one is done. An evaluation that fails is an
entry in the ledger and a missing measurement, never the study's failure.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace

from podium.components.launch.launcher import Task, TaskEnd
from podium.components.launch.open import open_launcher, run_task
from podium.components.reporting.build import build_report
from podium.components.study.layout import EVALUATION, LEASE, LOGS, evaluation_key
from podium.components.study.run import Finalist, Run, finalists
from podium.components.study.trials import run_usd, usd_of_seconds
from podium.trainer.trial.lease import TOKEN_VARIABLE, Lease
from podium.trainer.trial.storage import join_uri

METRICS = "metrics.json"


def evaluate(run: str, store: str, launcher: str, gpus: str) -> list[str]:
    """Evaluate the finalists of a run that have no evaluation yet; the names of those that have one now.

    `gpus` is what the step's pod requests; one evaluation takes one GPU where the last stage's trials take any. Raises
    UserError where no device serves, PodiumError when the run is cancelled.
    """
    opened = Run.open(store, run)
    waiting = [each for each in finalists(opened) if not _is_done(opened, each)]
    if waiting:
        declared = opened.study.stages[opened.stages[-1]].resources
        devices = min(1, declared.gpus_per_trial)
        resources = declared.model_copy(update={"gpus_per_trial": devices, "nodes": 1})
        with ExitStack() as stack:
            token = os.environ.get(TOKEN_VARIABLE) or None
            stack.enter_context(Lease(opened.storage, LEASE, what=f"run {opened.id}", token=token))
            starter = open_launcher(launcher, opened, EVALUATION, resources, parallel=1)
            stack.callback(starter.close)
            for finalist in waiting:
                ends = run_task(opened, starter, evaluation_task(opened, finalist, devices))
                # an attempt that was interrupted held its device too
                _record(opened, finalist, replace(ends[-1], seconds=sum(each.seconds for each in ends)))
    return [each.variant for each in finalists(opened) if _is_done(opened, each)]


def report_page(run: str, store: str) -> str:
    """The report as it stands, with the evaluation in it, as one HTML page."""
    return build_report(Run.open(store, run))


def evaluation_task(run: Run, finalist: Finalist, devices: int) -> Task:
    """The process that measures a finalist, by what the study declares."""
    declared, runtime = run.study.evaluation, finalist.trial.config.runtime
    argv = [sys.executable, "-m", "podium.trainer", "evaluate"]
    argv += ["--checkpoint", finalist.model_uri(run), "--data", finalist.trial.dataset_uri]
    argv += ["--output", join_uri(run.uri, evaluation_key(finalist.variant))]
    argv += ["--device", runtime.device, "--precision", runtime.precision]
    argv += ["--threads", str(runtime.threads)] if runtime.threads is not None else []
    argv += ["--skip-smallbench"] if declared.smallbench is None else ["--smallbench", declared.smallbench]
    argv += [] if declared.latency else ["--skip-latency"]
    argv += [] if declared.throughput else ["--skip-throughput"]
    argv += [] if declared.max_batches is None else ["--max-eval-batches", str(declared.max_batches)]
    name = f"{EVALUATION}/{finalist.variant}"
    return Task(
        name,
        argv,
        f"{LOGS}/{name}.log",
        devices=devices,
        # what has failed is tried anew, and is not found again as the attempt that failed
        attempt=_failures(run, finalist.variant) + 1,
        identity=finalist.trial.fingerprint,
        folder=evaluation_key(finalist.variant),
        labels={"variant": finalist.variant},
    )


def _is_done(run: Run, finalist: Finalist) -> bool:
    """Whether it has its metrics; a process that was killed after writing them left no ledger entry, made here."""
    metrics = run.read_json(f"{evaluation_key(finalist.variant)}/{METRICS}")
    if metrics is None:
        return False
    _append(run, finalist.variant, float(metrics.get("evaluation_seconds") or 0.0), status="completed")
    return True


def _record(run: Run, finalist: Finalist, ended: TaskEnd) -> None:
    if run.storage.exists(f"{evaluation_key(finalist.variant)}/{METRICS}"):
        _append(run, finalist.variant, ended.seconds, status="completed")
        print(f"{finalist.variant}: evaluated in {ended.seconds:.0f} s", flush=True)
        return
    key = f"{finalist.variant}/failed-{_failures(run, finalist.variant) + 1}"
    _append(run, key, ended.seconds, variant=finalist.variant, status="failed", code=ended.code, log_tail=ended.tail)
    print(f"{finalist.variant}: not evaluated, code {ended.code}:\n" + "\n".join(ended.tail), flush=True)


def _failures(run: Run, variant: str) -> int:
    entries = run.ledger.entries("evaluation")
    return sum(entry.data.get("variant") == variant and entry.data.get("status") == "failed" for entry in entries)


def _append(run: Run, key: str, seconds: float, *, variant: str | None = None, **data: object) -> None:
    price = run.study.evaluation.price
    usd = usd_of_seconds(price, seconds)  # of one device
    cost = round(usd if usd is not None else run_usd(price, 1) or 0.0, 6)
    run.ledger.append("evaluation", key, variant=variant or key, seconds=round(seconds, 3), cost_usd=cost, **data)
