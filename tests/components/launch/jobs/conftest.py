"""A stand-in for the API server that keeps Jobs, pods, events and watches, and fails as it is told.

It does what the launcher relies on: names are taken once, every change has a version, a watch goes on from a version
or answers 410, a deleted Job stays until its pods have ended. Nothing runs by itself: a test says what pods do.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from kubernetes import client

from podium.components.launch.job import JobLauncher
from podium.components.launch.job_cluster import Cluster, CountingClient
from podium.components.launch.job_manifest import JobMaker, JobSettings, RunOnCluster
from podium.components.launch.launcher import TaskEnd
from podium.components.study.schema import Resources

Object = dict[str, Any]


class StandInApi:
    """The state of one namespace, and the faults that are set."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.services: dict[str, Object] = {}
        self.warnings: list[Object] = []
        self.logs: dict[str, str] = {}
        self.history: list[tuple[int, str, Object]] = []
        self.version, self.oldest = 100, 0
        self.refuse: list[tuple[str, int, str]] = []
        """(`POST jobs`, status, message): answered once each, in order."""
        self.broken_watches = 0
        self.on_create: Callable[[Object], None] | None = None
        """Called with each new Job, outside the lock."""
        self.keep_deleted = False
        """Whether the pods of a deleted Job never end."""
        self.closing = False

    # ---- what a test does to the cluster ----

    def change(self, name: str, **status: Any) -> Object:
        """Change a Job's status; `suspend` goes into its spec."""
        with self.lock:
            job = json.loads(json.dumps(self.jobs[name]))
            if "suspend" in status:
                job["spec"]["suspend"] = status.pop("suspend")
            job["status"] |= status
            return self._save("MODIFIED", job)

    def pod(self, job: str, index: int = 0, **status: Any) -> str:
        """Give a Job a pod with this status, or change the one it has; its name."""
        with self.lock:
            owner = self.jobs[job]
            name = f"{job}-{index}-abcde"
            labels = {**owner["spec"]["template"]["metadata"]["labels"], "batch.kubernetes.io/job-name": job}
            reference = {"kind": "Job", "name": job, "uid": owner["metadata"]["uid"]}
            self.pods[name] = {
                "metadata": {"name": name, "labels": labels, "ownerReferences": [reference]},
                "spec": {**owner["spec"]["template"]["spec"], "nodeName": status.pop("node", "n1")},
                "status": {"phase": "Running", **status},
            }
            return name

    def run(self, job: str) -> None:
        """All pods of a Job run."""
        for index in range(self.jobs[job]["spec"].get("parallelism", 1)):
            image = "docker.io/podium/python-trainer@sha256:" + "a" * 64
            self.pod(job, index, containerStatuses=[{"name": "trial", "state": {"running": {}}, "imageID": image}])
        self.change(job, ready=self.jobs[job]["spec"].get("parallelism", 1), active=1)

    def succeed(self, job: str) -> None:
        """The Job is complete."""
        times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:07Z"}
        self.change(job, ready=0, active=0, conditions=[{"type": "Complete", "status": "True"}], **times)

    def fail(
        self, job: str, code: int = 1, *, message: str = "", reason: str = "Error", pod: bool = True, **more: Any
    ) -> None:
        """The Job's pod ended with this code, and the Job failed."""
        words = more.pop("job_condition", {})
        if pod:
            ended = {"exitCode": code, "reason": reason, "message": message}
            ended |= {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:05Z"}
            statuses = [{"name": "trial", "state": {"terminated": ended}}]
            self.pod(job, phase="Failed", containerStatuses=statuses, **more)
        condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}
        self.change(job, ready=0, active=0, conditions=[condition | words])

    def delete(self, name: str) -> None:
        """The Job and its pods are gone."""
        with self.lock:
            job = self.jobs.pop(name)
            self.pods = {
                key: pod for key, pod in self.pods.items() if pod["metadata"]["ownerReferences"][0]["name"] != name
            }
            self._note("DELETED", job)

    def forget_history(self) -> None:
        """Watches from before now are answered with 410, and those that are open break off."""
        with self.lock:
            self.oldest = self.version
            self.broken_watches += 1
            self.lock.notify_all()

    def break_watches(self) -> None:
        """Open watches break off."""
        with self.lock:
            self.broken_watches += 1
            self.lock.notify_all()

    # ---- what the handler asks ----

    def create_job(self, job: Object) -> tuple[int, Object]:
        with self.lock:
            name = job["metadata"]["name"]
            if name in self.jobs:
                return 409, {"message": f'jobs.batch "{name}" already exists', "reason": "AlreadyExists"}
            job["metadata"] |= {"uid": uuid.uuid4().hex}
            job.setdefault("status", {})
            made = self._save("ADDED", job)
        if self.on_create is not None:
            self.on_create(made)
        return 201, made

    def delete_job(self, name: str) -> tuple[int, Object]:
        with self.lock:
            if name not in self.jobs:
                return 404, {"message": "not found"}
            job = json.loads(json.dumps(self.jobs[name]))
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._save("MODIFIED", job)
        if not self.keep_deleted:
            self.delete(name)
        return 200, {}

    def events_since(self, version: int) -> list[tuple[int, str, Object]]:
        return [entry for entry in self.history if entry[0] > version]

    def _save(self, kind: str, job: Object) -> Object:
        self.version += 1
        job["metadata"]["resourceVersion"] = str(self.version)
        self.jobs[job["metadata"]["name"]] = job
        self.history.append((self.version, kind, job))
        self.lock.notify_all()
        return job

    def _note(self, kind: str, job: Object) -> None:
        self.version += 1
        job = json.loads(json.dumps(job))
        job["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, job))
        self.lock.notify_all()


def matches(thing: Object, selector: str) -> bool:
    labels = thing["metadata"].get("labels", {})
    wanted = [part.split("=") for part in selector.split(",") if part]
    return all(labels.get(key) == value for key, value in wanted)


def handler_of(api: StandInApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path, query, parts = self._where()
            if self._refused(f"GET {parts[-1] if parts[-1] in ('jobs', 'pods', 'events', 'log') else parts[-2]}"):
                return
            selector = query.get("labelSelector", "")
            if query.get("watch") in ("true", "True"):
                self._watch(int(query["resourceVersion"]), selector)
            elif parts[-1] == "jobs":
                with api.lock:
                    items = [job for job in api.jobs.values() if matches(job, selector)]
                    self._answer(200, {"items": items, "metadata": {"resourceVersion": str(api.version)}})
            elif parts[-2] == "jobs":
                with api.lock:
                    job = api.jobs.get(parts[-1])
                self._answer(200, job) if job else self._answer(404, {"message": "not found"})
            elif parts[-1] == "pods":
                phase = query.get("fieldSelector", "").removeprefix("status.phase=")
                with api.lock:
                    pods = [pod for pod in api.pods.values() if matches(pod, selector)]
                self._answer(200, {"items": [pod for pod in pods if phase in ("", pod["status"]["phase"])]})
            elif parts[-1] == "events":
                self._answer(200, {"items": api.warnings})
            elif parts[-1] == "log":
                self._answer(200, api.logs.get(parts[-2], "").encode())
            else:
                self._answer(404, {"message": f"no {path} here"})

        def do_POST(self) -> None:
            _, _, parts = self._where()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self._refused(f"POST {parts[-1]}"):
                return
            if parts[-1] == "services":
                api.services[body["metadata"]["name"]] = body
                self._answer(201, body)
            else:
                self._answer(*api.create_job(body))

        def do_DELETE(self) -> None:
            _, _, parts = self._where()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self._refused("DELETE jobs"):
                self._answer(*api.delete_job(parts[-1]))

        def _where(self) -> tuple[str, dict[str, str], list[str]]:
            url = urlsplit(self.path)
            return url.path, {key: values[0] for key, values in parse_qs(url.query).items()}, url.path.split("/")

        def _refused(self, what: str) -> bool:
            for entry in api.refuse:
                if entry[0] == what:
                    api.refuse.remove(entry)
                    if entry[1] == 0:
                        self.close_connection = True
                    else:
                        self._answer(entry[1], {"message": entry[2], "reason": "Forbidden"})
                    return True
            return False

        def _answer(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _watch(self, version: int, selector: str) -> None:
            if version < api.oldest:
                self._answer(410, {"message": "too old resource version", "reason": "Expired"})
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with api.lock:
                breaks = api.broken_watches
            with suppress(OSError):
                while not api.closing:
                    with api.lock:
                        found = api.events_since(version)
                        if not found and api.broken_watches == breaks:
                            api.lock.wait(0.2)
                            continue
                        if api.broken_watches != breaks:
                            break
                    version = found[-1][0]
                    for _, kind, job in found:
                        if matches(job, selector):
                            line = json.dumps({"type": kind, "object": job}).encode() + b"\n"
                            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                            self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    return Handler


@pytest.fixture
def api() -> Iterator[StandInApi]:
    """A cluster on which nothing runs by itself."""
    stand_in = StandInApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(stand_in))
    server.daemon_threads = True
    stand_in.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield stand_in
    stand_in.closing = True
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def open_cluster(api: StandInApi) -> Callable[[], Cluster]:
    """Connections to it, each with a count of its own."""

    def connect(_: str | None = None) -> Cluster:
        configuration = client.Configuration()
        configuration.host = api.address  # type: ignore[attr-defined]
        configuration.retries = False
        return Cluster(CountingClient(configuration), "somewhere")

    return connect


@pytest.fixture
def launch(open_cluster: Callable[[], Cluster]) -> Iterator[Callable[..., JobLauncher]]:
    """Opens a launcher of the stage `first` of a made-up run. What a test leaves open is let go."""
    opened: list[JobLauncher] = []

    def make(
        slots: int = 9, run: RunOnCluster | None = None, nodes: int = 1, gpus: int = 0, **settings: Any
    ) -> JobLauncher:
        uri = "s3://bucket/store/runs/made-up-12345678"
        run = run or RunOnCluster("s3://bucket/store", "made-up-12345678", uri, "1", "first")
        resources = Resources(nodes=nodes, gpus_per_trial=gpus)
        maker = JobMaker(run, JobSettings(**{"grace_seconds": 10, **settings}), resources)
        opened.append(JobLauncher(open_cluster(), maker, slots=slots))
        return opened[-1]

    yield make
    for launcher in opened:
        launcher.detach()
        launcher.close()


@pytest.fixture
def ends() -> Callable[..., list[TaskEnd]]:
    """Polls until so many tasks have ended."""

    def wait(launcher: JobLauncher, count: int = 1, seconds: float = 20.0) -> list[TaskEnd]:
        found: list[TaskEnd] = []
        deadline = time.monotonic() + seconds
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} ended"
            found += launcher.poll(0.2)
        return found

    return wait


@pytest.fixture
def until() -> Callable[..., None]:
    """Polls a launcher until a condition holds."""

    def wait(launcher: JobLauncher, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it never came to be"
            assert launcher.poll(0.05) == []

    return wait


@pytest.fixture
def count() -> Callable[[JobLauncher], Counter[str]]:
    """The calls that a launcher has made."""
    return lambda launcher: Counter(launcher._cluster.calls)
