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

from podium.components.study.design import Selection
from podium.components.study.load import dump_study, load_study, read_study_text
from podium.components.study.run import Run
from podium.components.study.schema import Study

if TYPE_CHECKING:
    from podium.pipelines.compile import Options
    from podium.pipelines.submit import Submitted, Uploaded
    from podium.pipelines.wait import RunOutcome

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
    study: Source,
    path: str | Path,
    *,
    profile: str = "full",
    store: str | None = None,
    launcher: Launcher | None = None,
    installation: str | None = None,
) -> Path:
    """Write the study as a pipeline YAML for Kubeflow Pipelines, and return the path.

    A study given by name or path is carried as it is written, with `profile` as an input; a `Study` object is carried
    resolved. `store` is the default of the pipeline's input, `installation` a file of what a cluster's installation
    sets (by default the one that PODIUM_INSTALLATION names). Raises UserError.
    """
    from podium.pipelines.compile import compile_study

    loaded, text = _loaded(study, profile)
    return compile_study(loaded, Path(path), text=text, options=_options(study, profile, store, launcher, installation))


def submit(
    study: Source,
    host: str | None = None,
    *,
    store: str | None = None,
    profile: str = "full",
    launcher: Launcher | None = None,
    experiment: str | None = None,
    installation: str | None = None,
    **who: Any,
) -> Submitted:
    """Start a study on a cluster's Kubeflow Pipelines and return at once with the run's id and link.

    `host` is the address of Kubeflow's API, by default the one inside the cluster or in `KF_PIPELINES_ENDPOINT`; `who`
    is the rest of a `podium.pipelines.kubeflow.address.Address` (namespace, token, cookie, username, password, …).
    Follow it with `wait`. Raises UserError.
    """
    from podium.pipelines.kubeflow.address import Address
    from podium.pipelines.submit import submit_study

    loaded, text = _loaded(study, profile)
    options = _options(study, profile, store, launcher, installation)
    return submit_study(loaded, Address(host=host, **who), text=text, options=options, experiment=experiment)


def upload(
    study: Source,
    host: str | None = None,
    *,
    store: str | None = None,
    profile: str = "full",
    launcher: Launcher | None = None,
    installation: str | None = None,
    **who: Any,
) -> Uploaded:
    """Put a study into Kubeflow as a pipeline, or as a new version of it where its content is new.

    `who` is as of `submit`. Uploading the same again changes nothing. Raises UserError.
    """
    from podium.pipelines.kubeflow.address import Address
    from podium.pipelines.kubeflow.api import open_kubeflow
    from podium.pipelines.submit import upload_study

    loaded, text = _loaded(study, profile)
    with open_kubeflow(Address(host=host, **who)) as kubeflow:
        return upload_study(
            kubeflow, loaded, text=text, options=_options(study, profile, store, launcher, installation)
        )


def wait(submitted: Submitted, *, retries: int = 3) -> RunOutcome:
    """Follow a submitted run to its end and say how it ended, with a line for each thing that happens.

    A failure of infrastructure (a lost pod or node) is retried at most `retries` times; a study that stops at a verdict
    is no failure. The run itself, where its store can be read: `Run.open(submitted.store, finished.run_id)`.
    """
    from podium.pipelines.kubeflow.api import open_kubeflow
    from podium.pipelines.wait import wait as follow

    with open_kubeflow(submitted.address) as kubeflow:
        return follow(kubeflow, submitted.id, submitted.store, retries=retries, event=print)


def _options(
    study: Source, profile: str, store: str | None, launcher: Launcher | None, installation: str | None
) -> Options:
    from podium.pipelines.compile import Options
    from podium.pipelines.installation import load_installation

    site = load_installation(installation)
    return Options(profile=_profile(study, profile), store=store or site.store, launcher=launcher, installation=site)


def _loaded(study: Source, profile: str) -> tuple[Study, str]:
    """The study, and the text that stands for it."""
    if isinstance(study, Study):
        return study, dump_study(study)
    return load_study(study, profile=profile), read_study_text(study)[0]


def _profile(study: Source, profile: str) -> str:
    return study.profile if isinstance(study, Study) else profile
