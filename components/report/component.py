"""The step report as Kubeflow sees it."""

from kfp.dsl import HTML, Output

from podium.components.kfp_component import step


@step
def report(run: str, store: str, html: Output[HTML]) -> None:
    """Write the report of the whole run.

    Args:
        run: Id of the run.
        store: Where the run lies.
        html: The report.
    """
    from pathlib import Path

    from podium.components.report.step import report as build
    from podium.components.step_process import step_process

    with step_process("report"):
        Path(html.path).write_text(build(run, store), encoding="utf-8")
