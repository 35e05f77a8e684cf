"""`podium submit` and `podium upload`: studies onto a cluster's Kubeflow Pipelines."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.pipelines.cli.options import (
    SCHEDULE,
    AxisName,
    Budget,
    Ca,
    Cookie,
    Data,
    Gpus,
    Host,
    Insecure,
    InstallationFile,
    Json,
    KubeflowNamespace,
    Launcher,
    Namespace,
    Parallel,
    PortForward,
    Profile,
    Seeds,
    Stages,
    StudyArgument,
    Token,
    Ui,
    Username,
    Variants,
    address,
    command,
    overrides,
    result,
    result_json,
    say,
    selection,
)
from podium.pipelines.cli.run import LedgerEvents, conclude
from podium.pipelines.cli.view import open_view
from podium.pipelines.kubeflow.api import Kubeflow, KubeflowRun, open_kubeflow
from podium.trainer.trial.errors import ExitCode, Problem, StorageError, UserError
from podium.trainer.trial.storage import normalise_uri

if TYPE_CHECKING:
    from podium.components.study.design import Overrides
    from podium.components.study.run import Run
    from podium.components.study.schema import Study
    from podium.pipelines.submit import Submitted, Uploaded

StoreOption = Annotated[
    str | None,
    typer.Option(
        envvar="PODIUM_STORE",
        help="Where the run is kept: s3://bucket/prefix, reached from the cluster; by default the installation's.",
    ),
]
LauncherOption = Annotated[
    Launcher | None,
    typer.Option(help="How trials are started; by default the installation's.", rich_help_panel=SCHEDULE),
]


@command("Run", 2)
def submit(
    study: StudyArgument,
    store: StoreOption = None,
    profile: Profile = "full",
    data: Data = None,
    budget: Budget = None,
    seeds: Seeds = None,
    gpus: Gpus = None,
    stages: Stages = None,
    variants: Variants = None,
    axis: AxisName = None,
    parallel: Parallel = None,
    launcher: LauncherOption = None,
    priority: Annotated[
        str, typer.Option(help="PriorityClass of the trials' Jobs (launcher job).", rich_help_panel=SCHEDULE)
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end; exit as podium run does.")] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="With --wait: times to go on after lost infrastructure (a node, a pod).")
    ] = 3,
    experiment: Annotated[str | None, typer.Option(help="Kubeflow experiment; by default the study's name.")] = None,
    service_account: Annotated[str | None, typer.Option(help="Service account of the steps; by default KFP's.")] = None,
    installation: InstallationFile = None,
    host: Host = None,
    ui: Ui = None,
    namespace: Namespace = None,
    token: Token = None,
    cookie: Cookie = None,
    username: Username = None,
    port_forward: PortForward = False,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    ca: Ca = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Start a study's pipeline on a cluster's Kubeflow Pipelines, and print the run's link.

    Without [b]--wait[/b] it returns at once; [b]podium status ID[/b] with the printed id reads the run's store. The
    same study submitted again goes on with the same run and repeats nothing that is finished.

    Example: [b]podium submit param-allocation --store s3://bucket/experiments --host https://kubeflow.example/pipeline
    --namespace me --wait[/b]
    """
    from podium.pipelines.compile import Options
    from podium.pipelines.installation import load_installation
    from podium.pipelines.submit import submit_to

    site = load_installation(installation)
    where = _store(store or site.store)
    changes = overrides(data, budget, seeds, gpus)
    loaded, text = _loaded(study, profile, changes)
    _check_corpus(loaded)
    chosen = selection(stages, variants, axis, parallel, launcher or site.launcher)
    part = chosen.to_json() if chosen.is_part or parallel is not None else ""
    options = Options(
        profile=profile,
        store=where,
        budget_usd=changes.budget_usd,
        launcher=launcher,
        selection=part,
        parallel=parallel,
        priority=priority,
        installation=site,
    )
    target = address(
        host=host,
        ui=ui,
        namespace=namespace,
        token=token,
        cookie=cookie,
        username=username,
        port_forward=port_forward,
        kubeflow_namespace=kubeflow_namespace,
        ca=ca,
        insecure=insecure,
    )
    with ExitStack() as stack:
        kubeflow = stack.enter_context(open_kubeflow(target))
        taken = submit_to(
            kubeflow, loaded, text=text, options=options, experiment=experiment, service_account=service_account
        )
        if not wait:
            _print_submitted(taken, as_json=as_json)
            return
        say(f"{taken.name}: {taken.id}{f' · {taken.link}' if taken.link else ''}")
        code = _follow(kubeflow, taken, retries, as_json=as_json)
    raise typer.Exit(code)


@command("Run", 3)
def upload(
    study: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY]…", help="Shipped studies' names, or YAML files.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every study that comes with Podium, and those named.")] = False,
    profile: Profile = "full",
    store: StoreOption = None,
    budget: Budget = None,
    launcher: LauncherOption = None,
    retry_for: Annotated[float, typer.Option(min=0, help="Seconds to wait for a Kubeflow that is starting.")] = 0,
    installation: InstallationFile = None,
    host: Host = None,
    ui: Ui = None,
    namespace: Namespace = None,
    token: Token = None,
    cookie: Cookie = None,
    username: Username = None,
    port_forward: PortForward = False,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    ca: Ca = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Put studies into Kubeflow as pipelines, one a study, to be run and edited in the browser.

    A version is named by its content: uploading the same again does nothing, a changed study becomes a new version.

    Example: [b]podium upload --all --store s3://bucket/experiments --port-forward[/b]
    """
    from podium.components.study.load import shipped_studies
    from podium.pipelines.compile import Options
    from podium.pipelines.installation import load_installation
    from podium.pipelines.submit import await_api, upload_study

    names = list(dict.fromkeys([*(shipped_studies() if every else []), *(study or [])]))
    if not names:
        raise UserError(Problem("STUDY", "name at least one study, or give --all"))
    site = load_installation(installation)
    changes = overrides(None, budget, None, None)
    options = Options(
        profile=profile,
        store=store or site.store,
        budget_usd=changes.budget_usd,
        launcher=launcher,
        installation=site,
    )
    loaded = [_loaded(name, profile, changes) for name in names]
    target = address(
        host=host,
        ui=ui,
        namespace=namespace,
        token=token,
        cookie=cookie,
        username=username,
        port_forward=port_forward,
        kubeflow_namespace=kubeflow_namespace,
        ca=ca,
        insecure=insecure,
    )
    done: list[Uploaded] = []
    with open_kubeflow(target) as kubeflow:
        await_api(kubeflow, retry_for)
        for each, text in loaded:
            made = upload_study(kubeflow, each, text=text, options=options)
            done.append(made)
            if not as_json:
                result(_uploaded(made))
    if as_json:
        result_json({"pipelines": [_plain(each) for each in done]})


def _loaded(source: str, profile: str, changes: Overrides) -> tuple[Study, str]:
    """The study, and the text that the pipeline carries: as written where only a profile and a budget go over it."""
    from podium.components.study.load import dump_study, load_study, read_study_text, shipped

    loaded = load_study(source, profile=profile, overrides=changes)
    text = read_study_text(source)[0]
    # the files that a study names beside itself are in its resolved text alone
    ships = ".py" in text and shipped(loaded.model_dump(mode="json"))
    if changes.seeds is None and changes.gpus is None and changes.data is None and not ships:
        return loaded, text
    return loaded, dump_study(loaded)


def _check_corpus(study: Study) -> None:
    """Raise UserError for a corpus on this machine, which no pod could read."""

    path = study.data.corpus.path
    if path is not None and "://" not in path:
        raise UserError(Problem("data.corpus", f"must be where the cluster can read it, such as s3://…, got {path!r}"))


def _store(store: str | None) -> str:

    if not store or not normalise_uri(store).startswith("s3://"):
        raise UserError(Problem("--store", f"must be s3://bucket/prefix, which the cluster can reach, got {store!r}"))
    return store


def _print_submitted(taken: Submitted, *, as_json: bool) -> None:
    if as_json:
        result_json({"id": taken.id, "name": taken.name, "link": taken.link, "store": taken.store})
    else:
        result(taken.link or f"{taken.name}: {taken.id}")
        say(f"follow it: podium status {taken.id} --store {taken.store}")


def _follow(kubeflow: Kubeflow, taken: Submitted, retries: int, *, as_json: bool) -> ExitCode:
    from podium.pipelines.wait import wait

    with open_view(as_json=as_json) as view:
        follower = _Follower(view)
        try:
            finished = wait(kubeflow, taken.id, taken.store, retries=retries, look=follower.look, event=view.event)
        except KeyboardInterrupt:
            say(
                f"the run goes on on the cluster: podium status {taken.id} --store {taken.store}, podium cancel ends it"
            )
            return ExitCode.INTERRUPTED
    if finished.reason:
        say(f"podium: {finished.reason}")
    if follower.run is not None and finished.exit_code != ExitCode.USER_ERROR:
        conclude(follower.run, finished.exit_code, as_json=as_json)
    elif as_json:
        result_json({"id": taken.id, "link": taken.link, "state": finished.state, "exit_code": finished.exit_code})
    else:
        result(f"{taken.name}: {finished.state}")
    return finished.exit_code


class _Follower:
    """Shows a run on Kubeflow: its steps by Kubeflow's word, and from the store, once it is there, all the rest."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self._states: dict[str, str] = {}
        self._events: Any = None
        self.run: Run | None = None

    def look(self, found: KubeflowRun, run: Run | None) -> None:
        """Tell what is new."""
        for task in found.tasks:
            if task.state in ("RUNNING", "SUCCEEDED", "FAILED") and self._states.get(task.name) != task.state:
                self._states[task.name] = task.state
                if not task.name.endswith("-driver"):
                    self._view.event(f"{task.name}: {task.state.lower()}")
        if run is not None and self._events is None:
            self.run, self._events = run, LedgerEvents(run, self._view)
            self._view.event(f"run {run.id} in {run.uri}")
        if self._events is not None:
            try:
                self._events.look()
            except StorageError as error:
                self._view.event(f"{error}; looking again")


def _uploaded(made: Uploaded) -> str:
    behind = "" if made.newest else " (Kubeflow shows a newer version first)"
    return f"{made.study}: {made.outcome} {made.version}{behind}{f' · {made.link}' if made.link else ''}"


def _plain(made: Uploaded) -> dict[str, Any]:

    return asdict(made)
