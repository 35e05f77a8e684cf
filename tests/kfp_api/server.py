"""A stand-in for Kubeflow Pipelines' API server: the documented v2beta1 paths and shapes, standard library only.

As a script it runs anywhere with a Python, in a pod too: `python server.py --host 0.0.0.0 --port 8888`. It keeps what
it is told in memory and runs nothing: a run's state changes when somebody says so (`POST /stand-in/runs/<id>` with
`{"state": "FAILED", "tasks": {"Prepare data": "SUCCEEDED"}}`), or by `--finish SECONDS` all by itself. `GET
/stand-in/state` tells everything it holds but the packages, `GET /stand-in/packages/<version id>` one of these.

It refuses as the real one does: 401 for a token that is not on the list, 403 for a namespace that is not the user's,
404 for what is not there, 409 for a second pipeline or version of a name, 400 for a body that is none. Errors have
grpc-gateway's shape, those of uploads the upload server's own.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
import uuid
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

API = "/apis/v2beta1"
GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}
LOGIN_PAGE = b"""<html><body><form method="post" action="/dex/auth/local/login?state=1">
<input type="text" name="login"><input type="password" name="password"></form></body></html>"""
CHOICE_PAGE = b"""<html><body><a href="/dex/auth/ldap?state=1">LDAP</a>
<a href="/dex/auth/local?state=1&amp;back=">Email</a></body></html>"""
SESSION = "oauth2_proxy_kubeflow=signed-in"


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class State:
    """Everything the server holds; tests change it while it serves."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pipelines: dict[str, dict] = {}
        self.versions: dict[str, dict] = {}
        self.packages: dict[str, str] = {}
        self.experiments: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and `Authorization` of each request."""
        self.multi_user = False
        self.namespaces: tuple[str, ...] = ()
        self.tokens: tuple[str, ...] = ()
        """Accepted bearer tokens; empty for no check."""
        self.users: dict[str, str] = {}
        """Of the login page; with any, whoever has no session and no token is sent there."""
        self.choice = False
        """Whether the login page asks first how to sign in."""
        self.broken: list[int] = []
        """Statuses with which the next requests fail, whatever they ask."""
        self.late_conflict = False
        """Lists hide what is there, so that two uploads meet only when they write."""
        self.retries: list[str] = []
        self.retry_lag = 0
        """Looks at a retried run that still say FAILED."""
        self.finish: float | None = None
        self.clock = 0

    def stamp(self) -> str:
        """A time of creation, each later than the one before."""
        self.clock += 1
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_700_000_000 + self.clock))

    def set_run(self, run_id: str, state: str, tasks: dict[str, str] | None = None, error: str = "") -> None:
        with self.lock:
            run = self.runs[run_id]
            run["state"] = state
            run["state_history"].append({"update_time": self.stamp(), "state": state})
            if error:
                run["error"] = {"code": 13, "message": error}
            for name, task_state in (tasks or {}).items():
                details = run["run_details"]["task_details"]
                known = next((each for each in details if each["display_name"] == name), None)
                if known is None:
                    known = {"run_id": run_id, "task_id": str(uuid.uuid4()), "display_name": name}
                    details.append(known)
                known["state"] = task_state

    def plain(self) -> dict:
        with self.lock:
            return {
                "pipelines": list(self.pipelines.values()),
                "versions": list(self.versions.values()),
                "experiments": list(self.experiments.values()),
                "runs": list(self.runs.values()),
                "requests": len(self.requests),
            }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def _handle(self, method: str) -> None:
        state = self.server.state
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with state.lock:
            state.requests.append((method, self.path, self.headers.get("Authorization")))
            if state.broken and not url.path.startswith("/stand-in"):
                self._error(state.broken.pop(0), "out of order", upload=False)
                return
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        upload = "/upload" in url.path
        try:
            if url.path.startswith("/stand-in"):
                self._answer(200, self._stand_in(method, url.path, body))
            elif self._is_login(method, url.path, body):
                return
            else:
                self._check_who()
                with state.lock:
                    self._answer(200, self._api(method, url.path, query, body))
        except Refused as refused:
            self._error(refused.status, refused.message, upload=upload)

    # ---- who asks ----

    def _is_login(self, method: str, path: str, body: bytes) -> bool:
        state = self.server.state
        if not state.users:
            return False
        if path == "/dex/auth/local/login":
            given = {key: values[0] for key, values in parse_qs(body.decode()).items()}
            if state.users.get(given.get("login", "")) != given.get("password"):
                self._page(200, LOGIN_PAGE)
            else:
                self._redirect("/", SESSION)
            return True
        if path.startswith("/dex/auth/local"):
            self._page(200, LOGIN_PAGE)
            return True
        if path.startswith("/dex/"):
            self._page(200, CHOICE_PAGE if state.choice else LOGIN_PAGE)
            return True
        if SESSION not in (self.headers.get("Cookie") or "") and not self.headers.get("Authorization"):
            self._redirect("/dex/auth?client_id=kubeflow")
            return True
        if path == "/":
            self._page(200, b"<html>the dashboard</html>")
            return True
        return False

    def _check_who(self) -> None:
        state = self.server.state
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if state.tokens and token not in state.tokens and SESSION not in (self.headers.get("Cookie") or ""):
            raise Refused(401, "Request header error: there is no user identity header, or the token has expired")

    def _check_namespace(self, namespace: str | None) -> str | None:
        state = self.server.state
        if not state.multi_user:
            if namespace:
                raise Refused(400, "In single-user mode, the namespace must be empty")
            return None
        if not namespace:
            raise Refused(400, "Invalid input error: a namespace is required in multi-user mode")
        if namespace not in state.namespaces:
            raise Refused(403, f"User is not authorized with reason: no access to namespace {namespace}")
        return namespace

    # ---- the API ----

    def _api(self, method: str, path: str, query: dict[str, str], body: bytes) -> dict:
        state = self.server.state
        path = path.removeprefix("/pipeline")
        if not path.startswith(API):
            raise Refused(404, "Not Found")
        path = path.removeprefix(API)
        run_verb = re.fullmatch(r"/runs/([^/:]+):(retry|terminate)", path)
        versions = re.fullmatch(r"/pipelines/([^/]+)/versions", path)
        if path == "/healthz":
            return {"multi_user": state.multi_user, "pipeline_store": "database"}
        if path == "/experiments":
            return self._experiments(method, query, body)
        if path == "/runs" and method == "POST":
            return self._create_run(_json(body))
        if run_verb is not None and method == "POST":
            return getattr(self, f"_{run_verb[2]}")(_there(state.runs, run_verb[1], "Run"))
        if path.startswith("/runs/"):
            return self._get_run(_there(state.runs, path.removeprefix("/runs/"), "Run"))
        if path == "/pipelines/upload_version" and method == "POST":
            return self._upload_version(query, body)
        if path == "/pipelines":
            return self._pipelines(method, query, body)
        if versions is not None:
            _there(state.pipelines, versions[1], "Pipeline")
            found = [each for each in state.versions.values() if each["pipeline_id"] == versions[1]]
            return self._page_of("pipeline_versions", found, query)
        raise Refused(404, "Not Found")

    def _experiments(self, method: str, query: dict[str, str], body: bytes) -> dict:
        state = self.server.state
        given = _json(body) if method == "POST" else query
        namespace = self._check_namespace(given.get("namespace"))
        if method == "GET":
            found = [each for each in state.experiments.values() if each.get("namespace") == namespace]
            return self._page_of("experiments", found, query)
        if any(
            each["display_name"] == given["display_name"] and each.get("namespace") == namespace
            for each in state.experiments.values()
        ):
            raise Refused(409, f"Already exist error: experiment {given['display_name']}")
        made = {"experiment_id": str(uuid.uuid4()), "display_name": given["display_name"], "created_at": state.stamp()}
        made |= {"namespace": namespace} if namespace else {}
        state.experiments[made["experiment_id"]] = made
        return made

    def _create_run(self, given: dict) -> dict:
        state = self.server.state
        _there(state.experiments, given.get("experiment_id", ""), "Experiment")
        spec = given.get("pipeline_spec") or {}
        if "pipelineInfo" not in spec.get("pipeline_spec", spec):
            raise Refused(400, "Invalid input error: the pipeline spec has no pipelineInfo")
        run_id = str(uuid.uuid4())
        state.runs[run_id] = given | {
            "run_id": run_id,
            "created_at": state.stamp(),
            "state": "PENDING",
            "state_history": [{"update_time": state.stamp(), "state": "PENDING"}],
            "run_details": {"task_details": []},
            "began": time.monotonic(),
        }
        return self._get_run(state.runs[run_id])

    def _get_run(self, run: dict) -> dict:
        state = self.server.state
        if state.finish is not None and run["state"] == "PENDING" and time.monotonic() - run["began"] > state.finish:
            state.set_run(run["run_id"], "SUCCEEDED")
        shown = {key: value for key, value in run.items() if key not in ("began", "lag")}
        if run.get("lag"):
            run["lag"] -= 1
            return shown | {"state": "FAILED", "state_history": run["state_history"][:-1]}
        return shown

    def _retry(self, run: dict) -> dict:
        state = self.server.state
        if run["state"] not in ("FAILED", "CANCELED"):
            raise Refused(400, f"Failed to retry a run: it is {run['state']}, only failed runs can be retried")
        state.retries.append(run["run_id"])
        run.pop("error", None)
        run["lag"] = state.retry_lag
        failed = {
            each["display_name"]: "RUNNING" for each in run["run_details"]["task_details"] if each["state"] == "FAILED"
        }
        state.set_run(run["run_id"], "RUNNING", failed)
        return {}

    def _terminate(self, run: dict) -> dict:
        # the real one says CANCELING and ends with FAILED
        self.server.state.set_run(run["run_id"], "CANCELING")
        self.server.state.set_run(run["run_id"], "FAILED")
        return {}

    def _pipelines(self, method: str, query: dict[str, str], body: bytes) -> dict:
        state = self.server.state
        given = _json(body) if method == "POST" else query
        namespace = given.get("namespace")
        if namespace:
            self._check_namespace(namespace)
        if method == "GET":
            found = [each for each in state.pipelines.values() if each.get("namespace") in (None, namespace)]
            return self._page_of("pipelines", found, query)
        if any(
            each["name"] == given["name"] and each.get("namespace") == namespace for each in state.pipelines.values()
        ):
            raise Refused(409, f"Already exist error: the name {given['name']} already exists")
        made = {key: given.get(key, "") for key in ("name", "display_name", "description")}
        made |= {"pipeline_id": str(uuid.uuid4()), "created_at": state.stamp()}
        made |= {"namespace": namespace} if namespace else {}
        state.pipelines[made["pipeline_id"]] = made
        return made

    def _upload_version(self, query: dict[str, str], body: bytes) -> dict:
        state = self.server.state
        pipeline = _there(state.pipelines, query.get("pipelineid", ""), "Pipeline")
        package = _uploaded(self.headers.get("Content-Type") or "", body)
        if "pipelineInfo:" not in package:
            raise Refused(400, "Failed to create a pipeline version: the file is no pipeline")
        named = [each for each in state.versions.values() if each["pipeline_id"] == pipeline["pipeline_id"]]
        if any(each["name"] == query["name"] for each in named):
            raise Refused(409, "Failed to create a pipeline version")
        made = {"pipeline_version_id": str(uuid.uuid4()), "pipeline_id": pipeline["pipeline_id"]}
        made |= {key: query.get(key, "") for key in ("name", "display_name", "description")}
        made["created_at"] = state.stamp()
        state.versions[made["pipeline_version_id"]] = made
        state.packages[made["pipeline_version_id"]] = package
        return made

    def _page_of(self, kind: str, found: list[dict], query: dict[str, str]) -> dict:
        """One page of a list, filtered and sorted as asked."""
        state = self.server.state
        if state.late_conflict:
            state.late_conflict = False
            found = []
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            wanted = predicate.get("stringValue", predicate.get("string_value"))
            found = [each for each in found if each.get(predicate["key"]) == wanted]
        found = sorted(found, key=lambda each: each["created_at"], reverse=query.get("sort_by", "").endswith(" desc"))
        begin, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
        answer: dict = {kind: found[begin : begin + size], "total_size": len(found)}
        if begin + size < len(found):
            answer["next_page_token"] = str(begin + size)
        return answer

    # ---- for tests in another process ----

    def _stand_in(self, method: str, path: str, body: bytes) -> dict:
        state = self.server.state
        if method == "GET" and path.startswith("/stand-in/packages/"):
            return {"package": _there(state.packages, path.removeprefix("/stand-in/packages/"), "Version")}
        if method == "GET":
            return state.plain()
        run_id = path.removeprefix("/stand-in/runs/")
        given = _json(body)
        state.set_run(_there(state.runs, run_id, "Run")["run_id"], given["state"], given.get("tasks"))
        return {}

    # ---- answers ----

    def _error(self, status: int, message: str, *, upload: bool) -> None:
        code = GRPC.get(status, 2)
        body = {"error_message": message, "error_details": message} if upload else {
            "error": message,
            "code": code,
            "message": message,
            "details": [{"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": message}],
        }  # fmt: skip
        self._answer(status, body)

    def _answer(self, status: int, content: dict) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _page(self, status: int, content: bytes) -> None:
        self._send(status, content, "text/html; charset=utf-8")

    def _redirect(self, to: str, cookie: str | None = None) -> None:
        self._send(302, b"", "text/html", {"Location": to, **({"Set-Cookie": f"{cookie}; Path=/"} if cookie else {})})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: requests are in the state."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), Handler)
        self.state = State()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def _json(body: bytes) -> dict:
    try:
        found = json.loads(body)
    except ValueError:
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is no object")
    return found


def _there(known: dict[str, dict], key: str, what: str) -> dict:
    if key not in known:
        raise Refused(404, f"ResourceNotFoundError: {what} {key} not found")
    return known[key]


def _uploaded(kind: str, body: bytes) -> str:
    """The file of a multipart upload, in its field `uploadfile`."""
    message = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    for part in message.get_payload() if message.is_multipart() else []:
        if part.get_param("name", header="content-disposition") == "uploadfile":
            return part.get_payload(decode=True).decode()
    raise Refused(400, "Failed to read pipeline from file")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--multi-user", nargs="*", metavar="NAMESPACE", help="many users, with these namespaces")
    parser.add_argument("--token", action="append", default=[], help="accept only these bearer tokens")
    parser.add_argument("--finish", type=float, metavar="SECONDS", help="every run succeeds after so long")
    given = parser.parse_args()
    server = Server(given.host, given.port)
    server.state.multi_user = given.multi_user is not None
    server.state.namespaces = tuple(given.multi_user or ())
    server.state.tokens, server.state.finish = tuple(given.token), given.finish
    print(f"stand-in KFP API on {given.host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
