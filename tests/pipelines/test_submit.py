"""Against an HTTP server that answers as Kubeflow's API does, as far as starting one run goes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from podium import submit
from podium.trainer.errors import UserError


class Kubeflow(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(200, {} if "/experiments" in self.path else {"multi_user": False})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append((self.path.partition("?")[0], body, self.headers.get("Authorization")))
        if self.path.endswith("/runs") and self.server.refuse:
            self._answer(401, {"error": "token expired"})
        elif self.path.endswith("/runs"):
            self._answer(200, {"run_id": "r-1", "display_name": body["display_name"]})
        else:
            self._answer(200, {"experiment_id": "e-1", "display_name": body["display_name"]})

    def _answer(self, code, content):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def kubeflow():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kubeflow)
    server.posted, server.refuse = [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_a_study_is_started_with_its_text_and_inputs_and_the_runs_link_comes_back(kubeflow):
    made = submit("param-allocation", address(kubeflow), store="s3://b/p", profile="smoke", token="secret")
    assert (made.id, made.name) == ("r-1", "param-allocation smoke")
    assert made.link == f"{address(kubeflow)}/#/runs/details/r-1"
    (_, experiment, _), (path, run, authorization) = kubeflow.posted
    assert path == "/apis/v2beta1/runs"
    assert experiment["display_name"] == "param-allocation"
    assert authorization == "Bearer secret"
    spec = run["pipeline_spec"]["pipeline_spec"]
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert (inputs["store"]["defaultValue"], inputs["profile"]["defaultValue"]) == ("s3://b/p", "smoke")
    assert yaml.safe_load(inputs["study"]["defaultValue"])["name"] == "param-allocation"
    assert "kubernetes" in run["pipeline_spec"]["platform_spec"]["platforms"]


def test_a_server_that_refuses_is_quoted(kubeflow):
    kubeflow.refuse = True
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+ refused the run: 401 Unauthorized"):
        submit("param-allocation", address(kubeflow), store="s3://b/p")


def test_a_server_that_is_not_there_is_one_clear_error():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 can't be reached: .*refused"):
        submit("param-allocation", "http://127.0.0.1:9", store="s3://b/p")
