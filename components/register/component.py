"""The step register as Kubeflow sees it."""

from podium.components.kfp_component import step


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
