"""The step prepare_data as Kubeflow sees it."""

from podium.components.kfp_component import step


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
