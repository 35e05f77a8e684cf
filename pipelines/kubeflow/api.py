"""What Podium asks of Kubeflow's API, by its generated client `kfp_server_api`.

Not by `kfp.Client`, which wraps the same client: it prints links of its own, keeps a context file in the home folder,
asks a server that is away five times with a traceback each, and takes the user's namespace for that of the service.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from podium.pipelines.kubeflow.address import Address, resolve
from podium.pipelines.kubeflow.refusals import RefusedError, no_api, refusal, unreachable
from podium.trainer.errors import Problem, UserError

CONNECT_SECONDS, READ_SECONDS = 10, 60
PAGE = 100
CANCELLED = ("CANCELING", "CANCELED")
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


@dataclass(frozen=True)
class TaskState:
    """A task of a run of Kubeflow's."""

    name: str
    state: str
    said: str
    """Kubeflow's words about a failure; mostly empty."""


@dataclass(frozen=True)
class KubeflowRun:
    """A run as Kubeflow's API describes it."""

    id: str
    name: str
    state: str
    """PENDING RUNNING SUCCEEDED SKIPPED FAILED CANCELING CANCELED PAUSED; empty before the first."""
    changes: int
    """Entries of its history of states: tells a run that failed again from one that has not yet begun its retry."""
    was_cancelled: bool
    """Whether somebody ended it; its state may be FAILED all the same."""
    tasks: tuple[TaskState, ...]
    store: str | None
    """Its input `store`."""
    said: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs."""
        return self.state in ENDED


@dataclass(frozen=True)
class Version:
    """A version of an uploaded pipeline."""

    id: str
    pipeline_id: str
    name: str


@contextmanager
def open_kubeflow(address: Address | None = None) -> Iterator[Kubeflow]:
    """Kubeflow's API at an address, signed in or forwarded where it says so. Raises UserError where it can't serve."""
    found = resolve(address)
    if found.port_forward:
        from podium.pipelines.kubeflow.forward import port_forward

        with port_forward(found.kubeflow_namespace) as host:
            yield Kubeflow(replace(found, host=host))
        return
    if found.username and found.password and not (found.cookie or found.token):
        found = replace(found, cookie=_sign_in(found))
    yield Kubeflow(found)


class Kubeflow:
    """Kubeflow's API. Every method raises UserError for a refusal, KubeflowError where the server itself failed."""

    def __init__(self, address: Address) -> None:
        import kfp_server_api  # type: ignore[import-untyped]
        import urllib3

        self.address = address
        self._kfp = kfp_server_api
        self._http_error = urllib3.exceptions.HTTPError
        settings = kfp_server_api.Configuration()
        settings.host = address.host
        # a login page is reached by redirects, so they are followed; asking again is left to whoever can say so
        settings.retries = urllib3.Retry(total=4, connect=0, read=0, other=0, redirect=4)
        settings.ssl_ca_cert = address.ca
        settings.verify_ssl = not address.insecure
        if address.token or address.token_file:
            settings.api_key["authorization"] = address.token or ""
            settings.api_key_prefix["authorization"] = "Bearer"
            if not address.token:
                settings.refresh_api_key_hook = _reads(address.token_file)
        self._client = kfp_server_api.ApiClient(settings, cookie=address.cookie)
        self._runs = kfp_server_api.RunServiceApi(self._client)
        self._pipelines = kfp_server_api.PipelineServiceApi(self._client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(self._client)
        self._experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self._healthz = kfp_server_api.HealthzServiceApi(self._client)

    def multi_user(self) -> bool:
        """Whether Kubeflow has many users, each with a namespace."""
        return bool(self._ask("its health", self._healthz.healthz_service_get_healthz).multi_user)

    def check_namespace(self) -> None:
        """Raise UserError where a namespace is needed and not given, or given and not known to this Kubeflow."""
        multi_user, namespace = self.multi_user(), self.address.namespace
        if multi_user and namespace is None:
            raise UserError(
                Problem("--namespace", "is needed: this Kubeflow has many users, each with a profile's namespace")
            )
        if not multi_user and namespace is not None:
            raise UserError(
                Problem("--namespace", f"must be left out: this Kubeflow has one namespace for all, got {namespace!r}")
            )

    def experiment(self, name: str) -> str:
        """The id of the experiment, made where it is missing, also while others do so."""
        found = self._find_experiment(name)
        if found is None:
            body = self._kfp.V2beta1Experiment(display_name=name, namespace=self.address.namespace)
            try:
                make = self._experiments.experiment_service_create_experiment
                return str(self._ask("the experiment", make, experiment=body).experiment_id)
            except RefusedError as error:
                found = self._find_experiment(name) if error.status == 409 else None
                if found is None:
                    raise
        return found

    def experiment_names(self) -> list[str]:
        """Some of the experiments that whoever asks may see."""
        extra = {"namespace": self.address.namespace} if self.address.namespace else {}
        ask = self._experiments.experiment_service_list_experiments
        return [str(each.display_name) for each in self._ask("the experiments", ask, **extra).experiments or []]

    def create_run(
        self,
        name: str,
        *,
        experiment_id: str,
        pipeline: dict[str, Any],
        parameters: dict[str, Any],
        description: str = "",
        service_account: str | None = None,
    ) -> str:
        """Start a run of a compiled pipeline, `{pipeline_spec, platform_spec}`, with these inputs; its id."""
        body = self._kfp.V2beta1Run(
            display_name=name,
            description=description,
            experiment_id=experiment_id,
            pipeline_spec=pipeline,
            runtime_config=self._kfp.V2beta1RuntimeConfig(parameters=parameters),
            service_account=service_account,
        )
        return str(self._ask("the run", self._runs.run_service_create_run, run=body).run_id)

    def run(self, run_id: str) -> KubeflowRun:
        """A run as it stands. Raises UserError for one that is not there."""
        found = self._ask(f"run {run_id}", self._runs.run_service_get_run, run_id=run_id)
        states = [each.state for each in found.state_history or []]
        details = found.run_details.task_details if found.run_details is not None else None
        tasks = [TaskState(each.display_name or "", each.state or "", _message(each.error)) for each in details or []]
        return KubeflowRun(
            id=run_id,
            name=found.display_name or "",
            state=found.state or "",
            changes=len(states),
            was_cancelled=any(each in CANCELLED for each in [found.state, *states]),
            tasks=tuple(tasks),
            store=_input(found, "store"),
            said=_message(found.error),
        )

    def retry(self, run_id: str) -> None:
        """Start the failed steps of a run that has failed once more; what has succeeded is not run again."""
        self._ask(f"a retry of run {run_id}", self._runs.run_service_retry_run, run_id=run_id)

    def terminate(self, run_id: str) -> None:
        """End a run: its pods are gone seconds later, without a signal to what runs in them."""
        self._ask(f"the end of run {run_id}", self._runs.run_service_terminate_run, run_id=run_id)

    def pipeline(self, name: str, *, display_name: str, description: str) -> str:
        """The id of the pipeline, made where it is missing, also while others do so."""
        found = self._find_pipeline(name)
        if found is None:
            body = self._kfp.V2beta1Pipeline(
                name=name, display_name=display_name, description=description, namespace=self.address.namespace
            )
            try:
                make = self._pipelines.pipeline_service_create_pipeline
                return str(self._ask(f"the pipeline {name}", make, pipeline=body).pipeline_id)
            except RefusedError as error:
                found = self._find_pipeline(name) if error.status == 409 else None
                if found is None:
                    raise
        return found

    def versions(self, pipeline_id: str) -> list[Version]:
        """A pipeline's versions, the newest first."""
        found: list[Version] = []
        token = ""
        while True:
            page = self._ask(
                "the versions",
                self._pipelines.pipeline_service_list_pipeline_versions,
                pipeline_id=pipeline_id,
                page_size=PAGE,
                page_token=token,
                sort_by="created_at desc",
            )
            listed = page.pipeline_versions or []
            found += [Version(each.pipeline_version_id, pipeline_id, each.name or each.display_name) for each in listed]
            token = page.next_page_token or ""
            if not token:
                return found

    def upload_version(self, pipeline_id: str, name: str, text: str, *, description: str) -> Version:
        """Add a version with this YAML to a pipeline."""
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "pipeline.yaml"
            package.write_text(text, encoding="utf-8")
            made = self._ask(
                f"the version {name}",
                self._uploads.upload_pipeline_version,
                str(package),
                name=name,
                display_name=name,
                pipelineid=pipeline_id,
                description=description,
            )
        return Version(str(made.pipeline_version_id), pipeline_id, name)

    def _find_experiment(self, name: str) -> str | None:
        chosen = _equals("display_name", name)
        extra = {"namespace": self.address.namespace} if self.address.namespace else {}
        ask = self._experiments.experiment_service_list_experiments
        page = self._ask("the experiments", ask, filter=chosen, page_size=PAGE, **extra)
        return next((str(each.experiment_id) for each in page.experiments or [] if each.display_name == name), None)

    def _find_pipeline(self, name: str) -> str | None:
        extra = {"namespace": self.address.namespace} if self.address.namespace else {}
        ask = self._pipelines.pipeline_service_list_pipelines
        page = self._ask("the pipelines", ask, filter=_equals("name", name), page_size=PAGE, **extra)
        return next((str(each.pipeline_id) for each in page.pipelines or [] if each.name == name), None)

    def _ask(self, doing: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            answer = call(*arguments, _request_timeout=(CONNECT_SECONDS, READ_SECONDS), **options)
        except self._kfp.ApiException as error:
            raise refusal(error, self.address, doing) from None
        except self._http_error as error:
            raise unreachable(error, self.address) from None
        except OSError as error:  # the token's file, or the authority's
            raise UserError(f"{self.address.host}: {error}") from None
        if "json" not in (self._client.last_response.getheaders().get("Content-Type") or ""):
            raise no_api(self.address)
        return answer


def _sign_in(address: Address) -> str:
    import ssl

    from podium.pipelines.kubeflow.login import sign_in

    assert address.host is not None
    assert address.username is not None
    assert address.password is not None
    context = ssl.create_default_context(cafile=address.ca)
    if address.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return sign_in(address.host.removesuffix("/pipeline"), address.username, address.password, context)


def _reads(path: Path | None) -> Callable[[Any], None]:
    def refresh(settings: Any) -> None:
        assert path is not None
        settings.api_key["authorization"] = path.read_text(encoding="utf-8").strip()

    return refresh


def _equals(key: str, value: str) -> str:
    import json

    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _message(error: Any) -> str:
    return (error.message or "") if error is not None else ""


def _input(run: Any, name: str) -> str | None:
    """A run's input: what it was given, else the default of its pipeline."""
    given = (run.runtime_config.parameters or {}) if run.runtime_config is not None else {}
    if name in given:
        return str(given[name])
    spec = run.pipeline_spec if isinstance(run.pipeline_spec, dict) else {}
    spec = spec.get("pipeline_spec", spec)
    inputs = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    value = inputs.get(name, {}).get("defaultValue")
    return None if value is None else str(value)
