"""The step train as Kubeflow sees it."""

from podium.components.kfp_component import trainer_step


@trainer_step
def train(run: str, store: str, stage: str, gpus: str, launcher: str, selection: str) -> str:
    """Run a stage's trials until each has a result.

    Args:
        run: Id of the run.
        store: Where the run lies.
        stage: The stage's name.
        gpus: GPUs of this step's pod.
        launcher: How trials are started: process or job.
        selection: JSON of the part of the study to run; empty for all of it.

    Returns:
        How many trials have a result, as `finished/all`.
    """
    from podium.components.step_process import step_process
    from podium.components.train.step import train as conduct_stage

    with step_process("train"):
        return conduct_stage(run, store, stage, gpus, launcher, selection)
