"""Podium from Python: what `from podium import …` gives, for notebooks and scripts.

from podium import Study, plan, run, compare

study = Study.load("param-allocation", profile="smoke")
print(plan(study).usd)
finished = run(study, store="runs")
finished.state(), finished.verdict("finals").reason
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from podium.components.study.load import Selection, dump_study, load_study, read_study_text
from podium.components.study.run import Run
from podium.components.study.schema import Study

if TYPE_CHECKING:
    from podium.pipelines.submit import Submitted

Source = Study | str
"""A study, or what `Study.load` takes: a shipped study's name, a path, or YAML text."""
Launcher = Literal["process", "job"]


def run(
    study: Source,
    store: str = "runs",
    *,
    profile: str = "full",
    stages: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    axis: str | None = None,
    parallel: int | None = None,
    launcher: Launcher = "process",
    new: bool = False,
) -> Run:
    """Run a study on this machine and return when it has come to its end; calling it again goes on or does nothing.

    `store` is a folder or `s3://bucket/prefix`. `stages`, `variants` and `axis` select a part, `parallel` is the number
    of trials at once; `new` makes another run beside one that is there. The result is in the run: `run.state()`,
    `run.verdict(stage)`, `run.status()`. A study that stops at a verdict is no error. Raises UserError listing every
    problem, and PipelineError where a step failed.
    """
    from podium.pipelines.local import run_local

    loaded, text = _loaded(study, profile)
    chosen = Selection(
        stages=None if stages is None else tuple(stages),
        variants=None if variants is None else tuple(variants),
        axis=axis,
        parallel=parallel,
        launcher=launcher,
    )
    made = Run.create(store, loaded, loaded.profile, chosen, text, new=new)
    run_local(made, selection=chosen)
    return made


def compile(  # noqa: A001  the command's name, in the namespace podium
    study: Source, path: str | Path, *, profile: str = "full", store: str | None = None, launcher: Launcher = "process"
) -> Path:
    """Write the study as a pipeline YAML for Kubeflow Pipelines, and return the path.

    A study given by name or path is carried as it is written, with `profile` as an input; a `Study` object is carried
    resolved. `store` is the default of the pipeline's input. Raises UserError.
    """
    from podium.pipelines.compile import compile_study

    loaded, text = _loaded(study, profile)
    return compile_study(
        loaded, Path(path), text=text, profile=_profile(study, profile), store=store, launcher=launcher
    )


def submit(
    study: Source,
    host: str | None = None,
    *,
    store: str,
    profile: str = "full",
    launcher: Launcher = "process",
    **where: Any,
) -> Submitted:
    """Start a study on a cluster's Kubeflow Pipelines and return at once with the run's id and link.

    `host` is the address of Kubeflow's API, by default the one inside the cluster or in `KF_PIPELINES_ENDPOINT`;
    `where` is passed on to `podium.pipelines.submit.submit_study` (namespace, experiment, token). Raises UserError.
    """
    from podium.pipelines.submit import submit_study

    loaded, text = _loaded(study, profile)
    return submit_study(
        loaded, host, text=text, profile=_profile(study, profile), store=store, launcher=launcher, **where
    )


def _loaded(study: Source, profile: str) -> tuple[Study, str]:
    """The study, and the text that stands for it."""
    if isinstance(study, Study):
        return study, dump_study(study)
    return load_study(study, profile=profile), read_study_text(study)[0]


def _profile(study: Source, profile: str) -> str:
    return study.profile if isinstance(study, Study) else profile
