"""The step evaluate as Kubeflow sees it."""

from podium.components.kfp_component import trainer_step
from podium.components.kfp_light import dsl


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
