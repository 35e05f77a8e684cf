"""The seven steps as Kubeflow components: the image of each, what the UI shows of it, and one call into its `step.py`.

KFP ships a function's source alone, hence the imports inside each one, and reads its annotations as they are: this
module must not postpone them (`from __future__ import annotations`). By default KFP's compiler would add a
`pip install kfp` to each step's command and pods would need a package registry: `install_kfp_package=False`.
"""

import functools
import importlib.metadata

from podium.components.kfp_light import dsl

VERSION = importlib.metadata.version("podium")

STEPS_IMAGE = f"podium/python-steps:{VERSION}"
"""Reads and writes the store and MLflow; no PyTorch. The name has `python` in it since kfp.local warns otherwise."""
TRAINER_IMAGE = f"podium/python-trainer:{VERSION}"
"""The steps' image with PyTorch: for the steps whose trials are child processes."""

step = functools.partial(dsl.component, base_image=STEPS_IMAGE, install_kfp_package=False)
"""Decorator of a step that trains nothing."""
trainer_step = functools.partial(dsl.component, base_image=TRAINER_IMAGE, install_kfp_package=False)
"""Decorator of a step that runs trials, or one process of the trainer."""


@step
def prepare_data(
    study: str,
    profile: str,
    store: str,
    budget: str,
    gpus: str,
    compiled_gpus: str,
    launcher: str,
    selection: str,
    kubeflow_run: str,
) -> str:
    """Turn the study into a run and prepare its data; does nothing that is already done.

    Args:
        study: The study's YAML text, or the URI of a file with it.
        profile: Named set of overrides in the study.
        store: Where runs and data lie: s3://bucket/prefix or file:///path.
        budget: Hard limit in US dollars over all stages; empty for the study's own.
        gpus: GPUs that each stage's pod requests, `stage=count,…`; checked against the study.
        compiled_gpus: The same as compiled: a count that nobody changed does not contradict an edited study.
        launcher: How trials are started: process or job.
        selection: JSON of the part of the study to run; empty for all of it.
        kubeflow_run: Id of Kubeflow's run, by which `podium status` finds ours.

    Returns:
        Id of the run.
    """
    from podium.components.prepare_data.step import prepare
    from podium.components.step_process import step_process

    with step_process("prepare_data", store=store, kubeflow_run=kubeflow_run):
        return prepare(study, profile, store, budget, gpus, launcher, selection, compiled_gpus, kubeflow_run)


@trainer_step
def shakedown(
    run: str, store: str, launcher: str, gpus: str, requests: str, priority: str, gate: dsl.Output[dsl.Markdown]
) -> str:
    """Gate before any paid stage: a short run on the real data must train, save, resume and be recorded.

    Args:
        run: Id of the run.
        store: Where the run lies.
        launcher: How trials are started: process or job.
        gpus: GPUs of this step's pod.
        requests: CPU and memory that this step's pod requests.
        priority: PriorityClass of the trials' Jobs; empty for the installation's.
        gate: What was checked, and why the gate failed where it did.

    Returns:
        pass or fail.
    """
    from pathlib import Path

    from podium.components.shakedown.step import gate_page
    from podium.components.shakedown.step import shakedown as run_gate
    from podium.components.step_process import step_process

    with step_process("shakedown", store=store, run=run, priority=priority):
        answer = run_gate(run, store, launcher, gpus)
        Path(gate.path).write_text(gate_page(run, store), encoding="utf-8")
        return answer


@trainer_step
def train(
    run: str, store: str, stage: str, launcher: str, gpus: str, requests: str, priority: str, selection: str
) -> str:
    """Run a stage's trials until each has a result.

    Args:
        run: Id of the run.
        store: Where the run lies.
        stage: The stage's name.
        launcher: How trials are started: process or job.
        gpus: GPUs of this step's pod.
        requests: CPU and memory that this step's pod requests.
        priority: PriorityClass of the trials' Jobs; empty for the installation's.
        selection: JSON of the part of the study to run; empty for all of it.

    Returns:
        How many trials have a result, as `finished/all`.
    """
    from podium.components.step_process import step_process
    from podium.components.train.step import train as conduct_stage

    with step_process("train", store=store, run=run, priority=priority):
        return conduct_stage(run, store, stage, gpus, launcher, selection)


@step
def select(
    run: str,
    store: str,
    stage: str,
    selection: str,
    verdict: dsl.Output[dsl.Markdown],
    numbers: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Decide who goes on from the stage's results, and say why.

    Args:
        run: Id of the run.
        store: Where the run lies.
        stage: Name of the stage that has just been trained.
        selection: JSON of the part of the study that runs; empty for all of it.
        verdict: The verdict, to read.
        numbers: The verdict's numbers.
        report: The report so far.

    Returns:
        promote, stop, await (a person's approval) or partial (only a part of the stage was selected).
    """
    from pathlib import Path

    from podium.components.select.step import select as decide_stage
    from podium.components.step_process import step_process

    with step_process("select", store=store, run=run):
        selected = decide_stage(run, store, stage, selection)
        Path(verdict.path).write_text(selected.markdown, encoding="utf-8")
        Path(report.path).write_text(selected.html, encoding="utf-8")
        for name, value in selected.metrics.items():
            numbers.log_metric(name, value)
        return selected.decision


@trainer_step
def evaluate(
    run: str, store: str, launcher: str, gpus: str, requests: str, priority: str, report: dsl.Output[dsl.HTML]
) -> str:
    """Measure every finalist: perplexity, bits per byte, SmallBench, latency, throughput, memory.

    Args:
        run: Id of the run.
        store: Where the run lies.
        launcher: How trials are started: process or job.
        gpus: GPUs of this step's pod.
        requests: CPU and memory that this step's pod requests.
        priority: PriorityClass of the trials' Jobs; empty for the installation's.
        report: The report with the evaluation in it.

    Returns:
        Names of the variants that have been evaluated, joined by commas.
    """
    from pathlib import Path

    from podium.components.evaluate.step import evaluate as evaluate_finalists
    from podium.components.evaluate.step import report_page
    from podium.components.step_process import step_process

    with step_process("evaluate", store=store, run=run, priority=priority):
        names = evaluate_finalists(run, store, launcher, gpus)
        Path(report.path).write_text(report_page(run, store), encoding="utf-8")
        return ",".join(names)


@step
def register(run: str, store: str) -> str:
    """Put the winner's model into the MLflow registry: champion where it is proven, else candidate.

    Args:
        run: Id of the run.
        store: Where the run lies.

    Returns:
        The registered model, as `models:/<name>@<alias>`.
    """
    from podium.components.register.step import register as register_winner
    from podium.components.step_process import step_process

    with step_process("register", store=store, run=run):
        return register_winner(run, store)


@step
def report(run: str, store: str, html: dsl.Output[dsl.HTML]) -> None:
    """Write the report of the whole run.

    Args:
        run: Id of the run.
        store: Where the run lies.
        html: The report.
    """
    from pathlib import Path

    from podium.components.report.step import report as build
    from podium.components.step_process import step_process

    with step_process("report", store=store, run=run):
        Path(html.path).write_text(build(run, store), encoding="utf-8")
