"""The step report as Kubeflow sees it."""

from podium.components.kfp_component import step
from podium.components.kfp_light import dsl


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
