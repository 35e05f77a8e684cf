"""What Podium asks of Kubeflow's API, by its generated client `kfp_server_api`.

Not by `kfp.Client`, which wraps the same client: it prints links of its own, keeps a context file in the home folder,
asks a server that is away five times with a traceback each, and takes the user's namespace for that of the service.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import unescape
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from podium.pipelines.kubeflow.address import Address, resolve
from podium.trainer.trial.errors import PodiumError, Problem, UserError

# Errors of Kubeflow's API, each as one sentence that says what to do.

SERVER_ERRORS = 500


class UnreachableError(UserError):
    """Nobody answers at the address."""


class KubeflowError(PodiumError):
    """Kubeflow's API failed by no mistake of the user's."""


class RefusedError(UserError):
    """Kubeflow's API refused a request; `status` is its HTTP status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def refusal(error: Any, address: Address, doing: str) -> PodiumError:
    """The error to raise for a `kfp_server_api.ApiException`."""
    where, said = address.host or "Kubeflow", _said(error)
    if error.status == 0:  # the generated client's way of passing on an error of TLS
        return UnreachableError(
            f"{where} can't be reached: {first_line(error.reason)}; for a private authority give --ca"
        )
    if error.status == 401:
        how = "cookie" if address.cookie else "token"
        had = address.token or address.token_file or address.cookie
        what = f"the {how} has expired or is not accepted: get a new one" if had else "it wants to know who asks"
        return RefusedError(f"{where} refused {doing}: 401: {what} (--token, --cookie or --username){said}", 401)
    if error.status == 403:
        place = f" in namespace {address.namespace}" if address.namespace else ""
        advice = "it is another's or does not exist" if address.namespace else "give --namespace"
        return RefusedError(f"{where} refused {doing}{place}: 403: you may not do that there: {advice}{said}", 403)
    if error.status >= SERVER_ERRORS:
        return KubeflowError(f"{where} failed at {doing}: {error.status} {error.reason}{said}")
    return RefusedError(f"{where} refused {doing}: {error.status} {error.reason}{said}", error.status)


def unreachable(error: object, address: Address) -> UnreachableError:
    """The error to raise where there is nobody to talk to."""
    reason = first_line(getattr(error, "reason", error))
    return UnreachableError(f"{address.host} can't be reached: {reason}")


def no_api(address: Address) -> UserError:
    """The error to raise where a page answers instead of the API: a login page, or another server."""
    return UserError(
        f"{address.host} answers with a web page, not with Kubeflow's API: sign in (--token, --cookie or --username), "
        "or give the API's address, which in a whole Kubeflow ends with /pipeline"
    )


def first_line(error: object) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or ["no reason given"])[0]


def _said(error: Any) -> str:
    """The server's own words, from the shapes in which KFP 2 sends them."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return ""
    if not isinstance(body, dict):
        return ""
    for key in ("error_message", "message", "error"):
        if isinstance(body.get(key), str) and body[key]:
            return f" ({first_line(body[key])})"
    return ""


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


# Links to Kubeflow's pages; they depend on how it is installed.

BEHIND_DASHBOARD = "/pipeline"
"""Path of the API and the pages in a whole Kubeflow, whose dashboard shows them in a frame under `/_/pipeline/`."""


def run_link(address: Address, run_id: str) -> str | None:
    """The run's page; None where only the API's address is known and no browser could open it."""
    return _link(address, f"/runs/details/{run_id}")


def pipeline_link(address: Address, pipeline_id: str, version_id: str) -> str | None:
    """The page of a pipeline's version, from which a run is created."""
    return _link(address, f"/pipelines/details/{pipeline_id}/version/{version_id}")


def _link(address: Address, page: str) -> str | None:
    base = address.ui or address.host
    if base is None or (address.ui is None and (address.port_forward or _is_inside(base))):
        return None
    if base.endswith(BEHIND_DASHBOARD) and address.namespace:
        root = base.removesuffix(BEHIND_DASHBOARD).removesuffix("/_")
        return f"{root}/_{BEHIND_DASHBOARD}/?ns={quote(address.namespace)}#{page}"
    return f"{base}/#{page}"


def _is_inside(host: str) -> bool:
    """Whether the address is a Service's, which only pods can open."""
    name = urlsplit(host).hostname or ""
    return name.endswith((".svc", ".svc.cluster.local")) or ".svc." in name


# Sign in at the login page of a Kubeflow that is guarded by Dex, as a browser does, for a session's cookie.
#
# Kubeflow's manifests put an authentication proxy (oauth2-proxy, formerly the OIDC authservice) before every page and
# API. Without a session it redirects to Dex, Dex to its login form, and the form back to the proxy, which sets its
# cookie. Where Dex has several ways to sign in it first shows a page of links; `local` is its own user table.

TIMEOUT_SECONDS = 20.0
SESSIONS = ("oauth2_proxy_kubeflow", "authservice_session")
"""Cookies that say who is signed in: of oauth2-proxy, and of the older authservice."""


def sign_in(host: str, username: str, password: str, context: ssl.SSLContext | None = None) -> str:
    """The session's cookies for `host`, as a `Cookie` header's value.

    Raises UserError where there is no login page, where it refuses, or where nobody answers.
    """
    jar = CookieJar()
    opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(jar), urllib.request.HTTPSHandler(context=context)
    )
    where = f"signing in to {host}"
    try:
        page, url = _get(opener, f"{host}/")
        url, page = _local_form(opener, page, url)
        if not _has_form(page):
            raise UserError(f"{where}: there is no login page; leave --username out, or give --token")
        action = urllib.parse.urljoin(url, _action(page) or url)
        form = urllib.parse.urlencode({"login": username, "password": password}).encode()
        page, url = _get(opener, action, form)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(_refused(where)) from None
        raise UserError(f"{where}: {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"{where}: can't be reached: {getattr(error, 'reason', error)}") from None
    if _has_form(page):
        raise UserError(_refused(where))
    cookies = [f"{each.name}={each.value}" for each in jar if each.name.startswith(SESSIONS)]
    if not cookies:
        raise UserError(f"{where}: no session's cookie came back ({' or '.join(SESSIONS)}); give --cookie or --token")
    return "; ".join(cookies)


def _refused(where: str) -> Problem:
    return Problem("", f"{where}: the username or the password is wrong")


def _local_form(opener: urllib.request.OpenerDirector, page: str, url: str) -> tuple[str, str]:
    """The form for a username and a password, behind the page of links where there is one."""
    if not _has_form(page):
        link = re.search(r"""href=["']([^"']*/auth/local[^"']*)["']""", page)
        if link is not None:
            page, url = _get(opener, urllib.parse.urljoin(url, unescape(link[1])))
    return url, page


def _has_form(page: str) -> bool:
    return re.search(r"""<input[^>]*name=["']password["']""", page) is not None


def _action(page: str) -> str | None:
    found = re.search(r"""<form[^>]*action=["']([^"']*)["']""", page)
    return unescape(found[1]) if found else None


def _get(opener: urllib.request.OpenerDirector, url: str, data: bytes | None = None) -> tuple[str, str]:
    with opener.open(urllib.request.Request(url, data=data), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        return answer.read().decode("utf-8", errors="replace"), answer.geturl()


# Reach Kubeflow through `kubectl port-forward`, for a laptop with a kubeconfig and no address of Kubeflow.

SERVICE = "svc/ml-pipeline"
PORT = 8888
START_SECONDS = 30.0


@contextmanager
def port_forward(namespace: str, context: str | None = None) -> Iterator[str]:
    """A local address of Kubeflow's API for as long as the block runs.

    kubectl chooses the port, so that two commands at once don't meet. Raises UserError where there is no kubectl, no
    such service, or no cluster.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise UserError(Problem("--port-forward", "needs kubectl, which is not on the PATH; give --host instead"))
    command = [kubectl, "port-forward", "--namespace", namespace, SERVICE, f":{PORT}", "--address", "127.0.0.1"]
    command += ["--context", context] if context else []
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield f"http://127.0.0.1:{_port(process, said)}"
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], said: object) -> int:
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        text = _read(said)
        found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+)", text)
        if found is not None and not ended:
            return int(found[1])
        if ended or time.monotonic() > deadline:
            reason = text.strip().splitlines()[-1] if text.strip() else f"nothing within {START_SECONDS:.0f} s"
            raise UserError(Problem("--port-forward", f"kubectl could not forward to {SERVICE}: {reason}"))
        time.sleep(0.05)


def _read(said: object) -> str:
    said.seek(0)  # type: ignore[attr-defined]
    return said.read().decode(errors="replace")  # type: ignore[attr-defined, no-any-return]
