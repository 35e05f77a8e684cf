"""The step shakedown as Kubeflow sees it."""

from podium.components.kfp_component import trainer_step
from podium.components.kfp_light import dsl


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
