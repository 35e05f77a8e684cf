"""The step shakedown as Kubeflow sees it."""

from podium.components.kfp_component import trainer_step


@trainer_step
def shakedown(run: str, store: str, launcher: str, gpus: str) -> str:
    """Gate before any paid stage: a short run on the real data must train, save, resume and be recorded.

    Args:
        run: Id of the run.
        store: Where the run lies.
        launcher: How trials are started: process or job.
        gpus: GPUs of this step's pod.

    Returns:
        pass or fail.
    """
    from podium.components.shakedown.step import shakedown as run_gate
    from podium.components.step_process import step_process

    with step_process("shakedown"):
        return run_gate(run, store, launcher, gpus)
