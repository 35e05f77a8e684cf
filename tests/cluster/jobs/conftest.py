"""A small study on the cluster's S3 server, and conductors of it on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podium.components.launch.job_cluster import open_cluster
from podium.components.prepare_data.step import prepare_datasets
from podium.components.study.load import load_study
from podium.components.study.run import Run

CONDUCTOR = Path(__file__).with_name("conductor.py")
STUDY = """
name: jobs
question: Do trials run as Jobs?
data: {{corpus: {{source: builtin, max_bytes: 600k}}, vocab_size: 512}}
config:
  model: {{family: transformer, d_model: 32, n_layers: 2, n_heads: 2, d_ff: 64}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 1.0e-3}}
  batch: {{sequences: 8}}
  evaluation: {{every_steps: {every}, sequences: 16}}
  checkpoint: {{every_steps: {every}}}
  runtime: {{device: cpu, precision: fp32, compile: never, threads: 1}}
design: list
variants: {variants}
stages:
  first:
    budget: {{steps: {steps}}}
    resources: {resources}
    retries: {retries}
    promotion: {{policy: best_mean}}
"""


@dataclass
class OnJobs:
    """One store and one namespace."""

    cluster: Any
    namespace: str
    store: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def make(self, **changes: Any) -> Run:
        """The run of a study with these changes, its data prepared."""
        fields = {"every": 20, "steps": 200, "variants": "{wide: {overrides: {model.d_ff: 128}}}", "retries": 1}
        fields |= {"resources": "{parallel: 2}", **changes}
        run = Run.create(self.store, load_study(STUDY.format(**fields)))
        prepare_datasets(run)
        return run

    def conduct(self, run: Run) -> subprocess.Popen[bytes]:
        """Start a conductor of the run's only stage."""
        command = [sys.executable, str(CONDUCTOR), run.store_uri, run.id, "first"]
        with (self.folder / f"conductor-{len(self.started)}.log").open("wb") as log:
            self.started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ.copy()))
        return self.started[-1]

    def said(self) -> str:
        """What all conductors have printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("conductor-*.log")))

    def get(self, what: str, selector: str = "app.kubernetes.io/name=podium") -> list[dict[str, Any]]:
        """Objects of the namespace."""
        listed = self.cluster.kubectl("-n", self.namespace, "get", what, "-l", selector, "-o", "json")
        found: list[dict[str, Any]] = json.loads(listed)["items"]
        return found

    def is_running(self, pods: int) -> bool:
        """Whether so many pods of trials run."""
        return sum(pod["status"].get("phase") == "Running" for pod in self.get("pods")) == pods


@pytest.fixture
def on_jobs(
    cluster: Any, namespace: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OnJobs]:
    """A namespace and a store for Jobs; conductors that a test leaves are killed."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    settings = {
        "namespace": namespace,
        "image": cluster.trainer_image,
        "image_pull_policy": "Never",
        "service_account": "podium-trial",
        "grace_seconds": 30,
        "cpu": "50m",
        "memory": "1Gi",
        "shared_memory": "64Mi",
        "scratch": "1Gi",
        # these tests are of the launcher; what is in the image is the images' tests to hold
        "check_sources": False,
    }
    monkeypatch.setenv("PODIUM_JOBS", json.dumps(settings))
    scene = OnJobs(cluster, namespace, store, tmp_path, settings)
    yield scene
    for process in scene.started:
        process.kill()
        process.wait()


@pytest.fixture
def connect(namespace: str) -> Iterator[Callable[[], Any]]:
    """Opens counted connections to the test's namespace."""
    opened: list[Any] = []

    def make() -> Any:
        opened.append(open_cluster(namespace))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
