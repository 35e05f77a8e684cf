"""Reaching Kubeflow by kubectl: with a stand-in for kubectl that forwards to where it is told."""

import os
import stat
import time

import pytest

from podium import submit
from podium.pipelines.kubeflow.api import port_forward
from podium.trainer.trial.errors import UserError

KUBECTL = """#!/bin/sh
echo "$$ $@" >> {folder}/calls
{body}
"""
FORWARDS = 'sleep 0.2; echo "Forwarding from 127.0.0.1:{port} -> 8888"; exec sleep 600'


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    def make(body):
        path = tmp_path / "kubectl"
        path.write_text(KUBECTL.format(folder=tmp_path, body=body))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "calls"

    return make


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_study_is_submitted_through_a_port_forward_that_ends_with_it(kfp, kubectl):
    state, port = kfp.state, kfp.host.rpartition(":")[2]
    calls = kubectl(FORWARDS.format(port=port))
    made = submit("param-allocation", store="s3://bucket/p", port_forward=True, kubeflow_namespace="pipelines")
    assert made.id in state.runs
    assert made.link is None, "the forwarded port is closed when the command has ended"
    pid, _, arguments = calls.read_text().strip().partition(" ")
    assert arguments == "port-forward --namespace pipelines svc/ml-pipeline :8888 --address 127.0.0.1"
    deadline = time.monotonic() + 30
    while is_running(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(pid))


def test_what_kubectl_says_is_passed_on(kubectl):
    kubectl('echo "Error from server (NotFound): services \\"ml-pipeline\\" not found" >&2; exit 1')
    with pytest.raises(UserError, match=r"--port-forward: kubectl could not forward .*NotFound"), port_forward("x"):
        pass


def test_without_kubectl_it_says_what_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs kubectl"), port_forward("kubeflow"):
        pass
