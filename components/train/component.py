"""The step train as Kubeflow sees it."""

from podium.components.kfp_component import trainer_step


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
