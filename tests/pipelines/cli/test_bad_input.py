"""Bad input: one clear error, exit code 2, and nothing written."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from podium.components.study import layout
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.trainer.trial.lease import Lease

MISTAKES = {
    "unknown field": ("d_ff: 32", "d_fff: 32", "d_fff"),
    "wrong type": ("n_layers: 1", "n_layers: one", "n_layers"),
    "axis on a field that does not exist": (
        "field: optimizer.learning_rate",
        "field: optimizer.rate",
        "optimizer.rate",
    ),
    "promotion of a metric nobody makes": ("{policy: best_mean}", "{policy: best_mean, metric: beauty}", "beauty"),
    "selection seeds as proof seeds": ("    seeds: 2\n", "    seeds: [42, 43]\n", "42"),
    "an evaluation interval that never occurs": ("every_steps: 4, seq", "every_steps: 400, seq", "every_steps"),
    "a kill rule that never looks": (
        "    budget: {steps: 8}\n    price",
        "    budget: {steps: 8}\n    stop: {kill: {criteria: [{metric: loss, threshold: 1}], span_tokens: 5M, "
        "min_tokens: 0}}\n    price",
        "span_tokens",
    ),
    "negative budget": ("evaluation: {smallbench", "budget: {usd: -5}\nevaluation: {smallbench", "budget.usd"),
    "budget that the first stage breaks": (
        "evaluation: {smallbench",
        "budget: {usd: 0.01}\nevaluation: {smallbench",
        "0.0",
    ),
    "broken YAML": ("axes:", "axes: [", "line"),
    "missing corpus": ("corpus.txt", "nowhere.txt", "nowhere.txt"),
}


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def check_refused(outcome, *words: str) -> None:
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    for word in words:
        assert word in outcome.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_study_with_a_mistake_is_refused_and_nothing_is_written(podium, study, text, tmp_path, mistake):
    right, wrong, word = MISTAKES[mistake]
    assert right in text
    study.write_text(text.replace(right, wrong, 1))
    before = files(tmp_path)
    check_refused(podium("run", study, "--store", tmp_path / "store"), word)
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", ["", "\n", "{}", "{}\n", "# only a comment\n", "- a\n- list\n"])
def test_an_empty_study_is_one_clear_error(podium, study, content):
    study.write_text(content)
    for command in ("validate", "plan", "run"):
        refused = podium(command, study)
        check_refused(refused, "study")
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_an_unknown_study_is_told_which_there_are(podium, command):
    check_refused(podium(command, "param-alocation"), "param-alocation", "param-allocation")


@pytest.mark.parametrize("content", ["", "Too short for anything.\n", "One line of text.\n" * 12])
def test_an_empty_corpus_or_one_shorter_than_a_block_is_refused(podium, study, tmp_path, content):
    short = tmp_path / "short.txt"
    short.write_text(content)
    before = files(tmp_path)
    check_refused(podium("run", study, "--data", short), "")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--profile", "smok"], "smok"),
        (["--budget", "-5"], "--budget"),
        (["--budget", "much"], "--budget"),
        (["--seeds", "0"], "--seeds"),
        (["--gpus", "-1"], "--gpus"),
        (["--stages", "rankin"], "rankin"),
        (["--axis", "depth"], "depth"),
        (["--stages", "ranking", "--variants", "baseline,widest"], "widest"),
        (["--parallel", "0"], "--parallel"),
        (["--launcher", "ssh"], "--launcher"),
        (["--data", "nowhere/"], "nowhere"),
    ],
)
def test_an_option_that_can_not_serve_is_named(podium, study, tmp_path, options, word):
    before = files(tmp_path)
    check_refused(podium("run", study, *options), word)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "command", [["status"], ["logs"], ["report"], ["cancel"], ["compare"], ["sync"], ["gc"], ["list"]]
)
def test_a_place_that_holds_no_run_is_refused(podium, tmp_path, command):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere"):
        arguments = ["--store", place] if command in (["gc"], ["list"]) else [place]
        check_refused(podium(*command, *arguments), "no run")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("store", ["gs://bucket/runs", "http://host/runs", "s3://", "s3:///runs"])
def test_a_store_of_an_unknown_scheme_is_refused(podium, study, store):
    check_refused(podium("run", study, "--store", store), "s3://bucket/prefix")
    check_refused(podium("status", store), "s3://bucket/prefix")


def test_a_store_that_can_not_be_written_is_refused(podium, study):
    check_refused(podium("run", study, "--store", "/proc/nothing/store"), "/proc/nothing/store")


@pytest.fixture
def s3(monkeypatch):
    """An S3 server without buckets, and the settings of a client of it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    _client(monkeypatch, f"http://{host}:{port}")
    yield
    server.stop()


@pytest.fixture
def refusing_s3(monkeypatch):
    """An S3 server that refuses everything, as with a wrong key."""
    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    class Refuse(http.server.BaseHTTPRequestHandler):
        def _refuse(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _refuse

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    _client(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def _client(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def test_a_bucket_that_does_not_exist_is_refused(podium, study, s3):
    refused = podium("run", study, "--store", "s3://nowhere/runs")
    check_refused(refused, "nowhere")
    assert "planted-secret" not in refused.output


def test_a_bucket_that_refuses_is_named_with_the_servers_reason(podium, study, refusing_s3):
    refused = podium("run", study, "--store", "s3://closed/runs")
    check_refused(refused, "closed")
    assert "planted-secret" not in refused.output


def test_a_run_in_use_by_another_process_is_refused(podium, study, tmp_path):
    store = str(tmp_path / "store")
    run = Run.create(store, load_study(str(study)), "full", None, study.read_text())
    with Lease(run.storage, layout.LEASE, what=f"run {run.id}"):
        before = files(tmp_path)
        check_refused(podium("run", study, "--store", store), "in use", str(os.getpid()))
        assert files(tmp_path) == before


def test_a_mistake_has_no_traceback_on_the_real_command_line(tmp_path):
    command = [str(Path(sys.executable).parent / "podium"), "run", "param-alocation"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
