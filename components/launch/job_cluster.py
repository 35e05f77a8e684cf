"""The API server as the conductor uses it: few calls, each counted, every refusal in words.

Objects travel as the JSON that the server sends: the client's own classes would cost tens of megabytes for a stage's
Jobs, and nothing here needs them.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from podium.trainer.trial.errors import PodiumError, UserError

CONNECT_SECONDS, READ_SECONDS = 10, 60
WATCH_SECONDS = 120
"""How long the server keeps one watch open; then it is taken up again where it ended."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Object = dict[str, Any]


class ApiError(PodiumError):
    """The API server did not do what it was asked."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        """`status` is HTTP's, 0 where there was no answer; `reason` is the API's word, such as AlreadyExists."""
        super().__init__(message)
        self.status, self.reason = status, reason

    @property
    def passes(self) -> bool:
        """Whether trying again later may help: no answer, an overloaded or restarting server."""
        return self.status in (0, 408, 429) or self.status >= 500

    @property
    def is_quota(self) -> bool:
        """Whether a ResourceQuota refused it."""
        return self.status == 403 and "exceeded quota" in str(self)


class CountingClient(client.ApiClient):  # type: ignore[misc]
    """The Kubernetes client, with a count of the requests that it sent by method and resource (`POST jobs`)."""

    def __init__(self, configuration: client.Configuration) -> None:
        super().__init__(configuration)
        self.calls: Counter[str] = Counter()

    def request(self, method: str, url: str, **options: Any) -> Any:
        """See ApiClient."""
        path = url.partition("?")[0].partition("/namespaces/")[2].split("/")
        watched = any(name == "watch" for name, _ in options.get("query_params") or ())
        self.calls[f"{'WATCH' if watched else method} {'/'.join(path[1::2])}"] += 1
        return super().request(method, url, **options)


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster."""

    api: CountingClient
    namespace: str

    @property
    def calls(self) -> Mapping[str, int]:
        """Requests sent so far, by method and resource."""
        return self.api.calls

    # ---- Jobs ----

    def create_job(self, job: Object) -> Object:
        """Create a Job; the object as the server made it. Raises ApiError."""
        made: Object = self._ask(self._batch.create_namespaced_job, self.namespace, job)
        return made

    def read_job(self, name: str) -> Object:
        """A Job by name. Raises ApiError."""
        found: Object = self._ask(self._batch.read_namespaced_job, name, self.namespace)
        return found

    def delete_job(self, name: str) -> None:
        """Have a Job and its pods go. Its object stays until its pods have ended. Raises ApiError, not for absence."""
        options = {"propagationPolicy": "Foreground"}
        try:
            self._ask(self._batch.delete_namespaced_job, name, self.namespace, body=options)
        except ApiError as error:
            if error.status != 404:
                raise

    def list_jobs(self, selector: str) -> tuple[list[Object], str]:
        """The Jobs with these labels, and the version of the list, from which a watch goes on. Raises ApiError."""
        found = self._ask(self._batch.list_namespaced_job, self.namespace, label_selector=selector)
        return found["items"], found["metadata"]["resourceVersion"]

    def watch_jobs(self, selector: str, version: str, opened: Callable[[Any], None]) -> Iterator[Object]:
        """What happens to the Jobs with these labels since `version`, until the server ends the watch.

        Events as the server sends them: `{"type": …, "object": …}`. `opened` is given the response, which has
        `shutdown()`. Raises ApiError.
        """
        options = {
            "label_selector": selector,
            "resource_version": version,
            "watch": True,
            "allow_watch_bookmarks": True,
            "timeout_seconds": WATCH_SECONDS,
            "_request_timeout": (CONNECT_SECONDS, WATCH_SECONDS + READ_SECONDS),
        }
        response = self._send(self._batch.list_namespaced_job, self.namespace, **options)
        opened(response)
        try:
            pending = b""
            for chunk in response.stream(decode_content=False):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiError(0, f"the watch broke off: {error}") from None
        finally:
            response.close()

    # ---- what explains a Job ----

    def create_service(self, service: Object) -> None:
        """Create a Service; one that is there already is left. Raises ApiError."""
        try:
            self._ask(self._core.create_namespaced_service, self.namespace, service)
        except ApiError as error:
            if error.status != 409:
                raise

    def list_pods(self, selector: str, fields: str = "") -> list[Object]:
        """The pods with these labels. Raises ApiError."""
        options = {"field_selector": fields} if fields else {}
        found: list[Object] = self._ask(
            self._core.list_namespaced_pod, self.namespace, label_selector=selector, **options
        )["items"]
        return found

    def list_warnings(self) -> list[Object]:
        """Events of the namespace that are warnings. Raises ApiError."""
        found: list[Object] = self._ask(
            self._core.list_namespaced_event, self.namespace, field_selector="type=Warning", limit=500
        )["items"]
        return found

    def read_log(self, pod: str, container: str, lines: int) -> list[str]:
        """The last lines that a pod's container wrote. Raises ApiError."""
        response = self._send(
            self._core.read_namespaced_pod_log, pod, self.namespace, container=container, tail_lines=lines
        )
        text: str = response.data.decode(errors="replace")
        return text.splitlines()

    def own_workflow(self) -> Object | None:
        """The ownerReference of the Workflow that this pod belongs to; None outside of one. Raises ApiError."""
        if not (SERVICE_ACCOUNT / "namespace").exists() or own_namespace() != self.namespace:
            return None
        pod = self._ask(self._core.read_namespaced_pod, os.environ.get("HOSTNAME", ""), self.namespace)
        for owner in pod["metadata"].get("ownerReferences") or []:
            if owner["kind"] == "Workflow":
                return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
        return None

    def close(self) -> None:
        """Close the connections."""
        self.api.rest_client.pool_manager.clear()
        self.api.close()

    @cached_property
    def _batch(self) -> Any:
        return client.BatchV1Api(self.api)

    @cached_property
    def _core(self) -> Any:
        return client.CoreV1Api(self.api)

    def _ask(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return json.loads(self._send(method, *arguments, **options).data)

    def _send(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        options = {"_request_timeout": (CONNECT_SECONDS, READ_SECONDS), **options}
        try:
            return method(*arguments, _preload_content=False, **options)
        except ApiException as error:
            raise _as_api_error(error) from None
        except (urllib3.exceptions.HTTPError, OSError, ssl.SSLError) as error:
            host = self.api.configuration.host
            raise ApiError(0, f"the cluster at {host} can't be reached: {_short(error)}") from None


def open_cluster(namespace: str | None = None) -> Cluster:
    """The cluster that this process belongs to, or else the one that the kubeconfig's context names.

    `namespace` is by default the pod's own, or the context's. Raises UserError where there is neither.
    """
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
            config.load_incluster_config(client_configuration=configuration)
            own = own_namespace()
        else:
            config.load_kube_config(client_configuration=configuration)
            _, context = config.list_kube_config_contexts()
            own = context["context"].get("namespace")
    except (config.ConfigException, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"launcher job needs a cluster: this is no pod with a service account, and no kubeconfig serves ({error})"
        ) from None
    configuration.retries = urllib3.Retry(connect=1, read=1, redirect=0, status=0, allowed_methods=None)
    return Cluster(CountingClient(configuration), namespace or own or "default")


def own_namespace() -> str:
    """The namespace of this pod."""
    return (SERVICE_ACCOUNT / "namespace").read_text().strip()


def _as_api_error(error: ApiException) -> ApiError:
    try:
        said = json.loads(error.body)
        message, reason = said["message"], said.get("reason") or ""
    except (TypeError, ValueError, KeyError):
        message, reason = str(error.reason or error.body or "no answer"), ""
    return ApiError(int(error.status or 0), message, reason)


def _short(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).partition(": ")[2] or str(error)


# One watch on all Jobs of a step, in a thread, taken up again whatever ends it.
#
# What it saw goes into a queue. Where the server no longer knows the version from which to go on (410), or after a
# break of unknown length, the Jobs are listed again, and who reads the queue compares.

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.2, 15.0
"""Back-off while the server does not answer."""
GONE = 410

_log = logging.getLogger("podium.jobs")


@dataclass(frozen=True)
class JobUpdate:
    """A Job as the server last told of it."""

    job: Object
    deleted: bool = False


@dataclass(frozen=True)
class JobList:
    """All Jobs that there are; one that is not among them is gone."""

    jobs: list[Object]


def slim(job: Object) -> Object:
    """What a launcher needs of a Job: a tenth of it, without its template and who changed which field."""
    metadata, spec = job["metadata"], job["spec"]
    return {
        "metadata": {key: metadata[key] for key in ("name", "uid", "labels", "deletionTimestamp") if key in metadata},
        "spec": {key: spec[key] for key in ("suspend", "parallelism", "activeDeadlineSeconds") if key in spec},
        "status": job.get("status") or {},
    }


class JobWatch:
    """Follows the Jobs with these labels from a list's version on."""

    def __init__(self, cluster: Cluster, selector: str, version: str) -> None:
        self.events: queue.SimpleQueue[JobUpdate | JobList] = queue.SimpleQueue()
        self._cluster, self._selector, self._version = cluster, selector, version
        self._end = threading.Event()
        self._response: Any = None
        self._thread = threading.Thread(target=self._follow, name="job watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        response = self._response
        if response is not None:
            with suppress(Exception):  # it may have been closed at this moment
                response.shutdown()
        self._thread.join(5.0)

    def _follow(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self._end.is_set():
            try:
                self._watch()
                delay = FIRST_DELAY_SECONDS
                # a server that ends each watch at once must not be asked in a tight loop
                self._end.wait(FIRST_DELAY_SECONDS)
                continue
            except ApiError as error:
                if self._end.is_set():
                    return
                if error.status == GONE:
                    self._version = ""
                else:
                    _log.info("watching Jobs: %s; again in %.1f s", error, delay)
            self._end.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _watch(self) -> None:
        if not self._version:
            jobs, self._version = self._cluster.list_jobs(self._selector)
            self.events.put(JobList([slim(job) for job in jobs]))
        for event in self._cluster.watch_jobs(self._selector, self._version, self._opened):
            kind, what = event["type"], event["object"]
            if kind == "ERROR":
                raise ApiError(int(what.get("code") or 0), str(what.get("message")), str(what.get("reason")))
            self._version = what["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                self.events.put(JobUpdate(slim(what), deleted=kind == "DELETED"))

    def _opened(self, response: Any) -> None:
        self._response = response
        if self._end.is_set():
            response.shutdown()


# The least that a conductor and the reaper need to be allowed in the namespace of the Jobs, as rules of a Role.
#
# `python -m podium.components.launch.job_cluster [NAME]` prints both Roles for `kubectl apply`. The chart has the same,
# and a test compares them.

Rule = dict[str, list[str]]

CONDUCTOR_RULES: list[Rule] = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "watch", "delete"]},
    # get: the conductor's own pod, whose owner its Jobs get; list: how a pod ended, why one does not start
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    # headless ones, by which the machines of a trial find each other
    {"apiGroups": [""], "resources": ["services"], "verbs": ["create"]},
]
REAPER_RULES: list[Rule] = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "delete"]}]


def role(name: str, rules: list[Rule]) -> dict[str, Any]:
    """A Role with these rules."""
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules}


def main() -> None:
    """Print the Roles as one list."""
    name = sys.argv[1] if len(sys.argv) > 1 else "podium"
    roles = [role(f"{name}-conductor", CONDUCTOR_RULES), role(f"{name}-reaper", REAPER_RULES)]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": roles}, indent=2))


if __name__ == "__main__":
    main()
