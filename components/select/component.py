"""The step select as Kubeflow sees it."""

from podium.components.kfp_component import step
from podium.components.kfp_light import dsl


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
