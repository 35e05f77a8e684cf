"""The step evaluate as Kubeflow sees it."""

from podium.components.kfp_component import trainer_step


@trainer_step
def evaluate(run: str, store: str, launcher: str, gpus: str) -> str:
    """Measure every finalist: perplexity, bits per byte, SmallBench, latency, throughput, memory.

    Args:
        run: Id of the run.
        store: Where the run lies.
        launcher: How trials are started: process or job.
        gpus: GPUs of this step's pod.

    Returns:
        Names of the variants that have been evaluated, joined by commas.
    """
    from podium.components.evaluate.step import evaluate as evaluate_finalists
    from podium.components.step_process import step_process

    with step_process("evaluate"):
        return ",".join(evaluate_finalists(run, store, launcher, gpus))
