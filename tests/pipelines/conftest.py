"""Steps of a local pipeline replaced in its child processes, and what compiled pipelines are read with."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import textwrap
import threading
import uuid
from pathlib import Path

import pytest

FAKE_STEPS = '''
"""Python imports this at the start of every child process: the steps' logic is replaced, their components are not."""
import os, sys, types
from pathlib import Path

OUT = Path({out!r})


def _note(name, arguments):
    with (OUT / "calls.txt").open("a") as file:
        file.write(repr((name, os.getpid(), arguments)) + "\\n")
    behaviour = {behaviour!r}.get(name)
    if behaviour == "user error":
        from podium.trainer.trial.errors import UserError
        raise UserError("corpus: must be a file, got 'nowhere'")
    if behaviour == "bug":
        raise ValueError("a bug of ours")
    if behaviour == "killed":
        os.kill(os.getpid(), 9)
    if behaviour == "sleep":
        import time
        time.sleep(600)
    return behaviour


def _step(name, function, answer):
    def run(*arguments):
        told = _note(name, arguments)
        return told if told is not None and told not in ("user error", "bug", "killed", "sleep") else answer
    module = types.ModuleType(f"podium.components.{{name}}.step")
    setattr(module, function, run)
    module.gate_page = module.report_page = lambda run, store: "a page"
    sys.modules[module.__name__] = module


class Selected:
    def __init__(self, decision):
        self.decision, self.markdown, self.html, self.metrics = decision, "# verdict", "<p>report</p>", {{"n": 1.0}}


if "kfp.dsl.executor_main" in sys.orig_argv:
    _step("prepare_data", "prepare", "demo-0a1b2c3d")
    _step("shakedown", "shakedown", "pass")
    _step("train", "train", "1/1")
    _step("evaluate", "evaluate", ["baseline"])
    _step("register", "register", "models:/demo@candidate")
    _step("report", "report", "<p>report</p>")
    _step("select", "select", None)
    decide = sys.modules["podium.components.select.step"].select
    def select(run, store, stage, selection):
        return Selected(decide(run, store, stage, selection) or {decisions!r}.get(stage, "promote"))
    sys.modules["podium.components.select.step"].select = select
'''


class FakeSteps:
    """What a local pipeline's steps were called with, in order."""

    def __init__(self, folder: Path, behaviour: dict[str, str], decisions: dict[str, str]) -> None:
        self.folder = folder
        site = folder / "site"
        site.mkdir(parents=True)
        text = FAKE_STEPS.format(out=str(folder), behaviour=behaviour, decisions=decisions)
        (site / "sitecustomize.py").write_text(textwrap.dedent(text))
        self.env = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}

    def calls(self) -> list[tuple[str, int, tuple[str, ...]]]:
        path = self.folder / "calls.txt"
        return [eval(line) for line in path.read_text().splitlines()] if path.exists() else []

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls()]


@pytest.fixture
def fake_steps(tmp_path):
    """Make stand-ins for the steps' logic: step → 'user error', 'bug', 'killed', 'sleep' or what it answers."""
    made = []

    def make(decisions: dict[str, str] | None = None, **behaviour: str) -> FakeSteps:
        made.append(FakeSteps(tmp_path / f"steps-{len(made)}", behaviour, decisions or {}))
        return made[-1]

    return make


@pytest.fixture
def podium_cli():
    """Runs the command line in this process."""
    from typer.testing import CliRunner

    from podium.pipelines.cli.main import app

    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


STAND_IN = Path(__file__).parent.parent / "kfp_api" / "server.py"
KFP_HOST = "PODIUM_KFP_HOST"
"""Environment: address of a real Kubeflow Pipelines (one user, no login) against which the same tests run."""


class Kfp:
    """A Kubeflow Pipelines API: the stand-in, whose state a test may change, or a real one."""

    def __init__(self, host: str, server=None) -> None:
        self.host = host
        self._server = server
        self.study = f"study-{uuid.uuid4().hex[:8]}"
        """A name that no other test has used: a real server remembers."""

    @property
    def state(self):
        """The stand-in's state; a test that needs it can't run against a real server."""
        if self._server is None:
            pytest.skip(f"{KFP_HOST} is set: a real server can't be told how to behave")
        return self._server.state


@pytest.fixture
def kfp(monkeypatch):
    """A Kubeflow Pipelines API, and an environment that says nothing of any other."""
    for name in list(os.environ):
        ours = name.startswith(("KF_PIPELINES_", "PODIUM_KFP_", "PODIUM_INSTALLATION", "PODIUM_STORE"))
        if ours and name != KFP_HOST:
            monkeypatch.delenv(name)
    if os.environ.get(KFP_HOST):
        yield Kfp(os.environ[KFP_HOST])
        return
    specification = importlib.util.spec_from_file_location("kfp_api_server", STAND_IN)
    module = importlib.util.module_from_spec(specification)
    sys.modules["kfp_api_server"] = module
    specification.loader.exec_module(module)
    server = module.Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Kfp(server.address, server)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dangling():
    """Find references to inputs or tasks that are not there: what the backend and kfp.local fail on at run time."""
    return dangling_references


def dangling_references(spec: dict, platform: dict) -> list[str]:
    """Every componentInputParameter must be an input of the component it is in; every producer a task beside it."""
    found: list[str] = []
    scopes = {"root": spec["root"], **spec["components"]}
    parents: dict[str, str] = {}
    for scope, component in scopes.items():
        tasks = component.get("dag", {}).get("tasks", {})
        inputs = component.get("inputDefinitions", {})
        names = {*inputs.get("parameters", {}), *inputs.get("artifacts", {})}
        for task, content in tasks.items():
            called = spec["components"][content["componentRef"]["name"]]
            parents[called.get("executorLabel", "")] = scope
            taken = called.get("inputDefinitions", {}).get("parameters", {})
            given = content.get("inputs", {}).get("parameters", {})
            # kfp adds channels that only a task's Kubernetes settings use: to the task, not to the component
            found += [f"{scope}/{task}: {name} is not given" for name in taken if name not in given]
            for where, key, value in _references(content):
                if key in ("componentInputParameter", "componentInputArtifact") and value not in names:
                    found.append(f"{scope}/{task}{where}: no input {value}")
                if key == "producerTask" and value not in tasks:
                    found.append(f"{scope}/{task}{where}: no task {value}")
                if key == "outputParameterKey":
                    producer = tasks[
                        content["inputs"]["parameters"][where.split("/")[3]]["taskOutputParameter"]["producerTask"]
                    ]
                    outputs = spec["components"][producer["componentRef"]["name"]]["outputDefinitions"]["parameters"]
                    found += [] if value in outputs else [f"{scope}/{task}{where}: no output {value}"]
            found += [
                f"{scope}/{task}: after no task {name}"
                for name in content.get("dependentTasks", [])
                if name not in tasks
            ]
            for channel in _placeholders(json.dumps(content)):
                if channel not in given:
                    found.append(f"{scope}/{task}: {channel} is used in a text and not given")
    for executor, settings in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
        scope = scopes[parents[executor]]
        names = set(scope["inputDefinitions"]["parameters"])
        found += [
            f"platform/{executor}{where}: {parents[executor]} has no input {value}"
            for where, key, value in _references(settings)
            if key == "componentInputParameter" and value not in names
        ]
    return found


def _references(value, where=""):
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(below, str):
                yield f"{where}/{key}", key, below
            yield from _references(below, f"{where}/{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _references(below, f"{where}/{index}")


def _placeholders(text):
    start = "{{$.inputs.parameters['"
    return [part.partition("'")[0] for part in text.split(start)[1:]]
