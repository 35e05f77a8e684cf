"""A small study whose trials train for some seconds as Jobs, a conductor that can be killed, and what both left."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

CONDUCT = Path(__file__).parent / "conduct.py"
EVERY = 20
"""Steps between two checkpoints."""
STEPS = 240
PATIENCE_SECONDS = 600.0
"""For what takes half a minute on a quiet machine and ten times that on a busy one: no test is of its speed."""
SLOW = """\
import runpy, time
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: time.sleep(0.05))
runpy.run_module("podium.trainer", run_name="__main__", alter_sys=True)
"""
"""The trainer with a pause after each step: a trial lasts long enough to be hit, and costs the machine little."""
STUDY = f"""\
name: fault
question: Does a trial to which something happens end like any other?
data:
  corpus: {{source: builtin, max_bytes: 600k}}
  vocab_size: 512
config:
  model: {{family: transformer, d_model: 32, n_layers: 2, n_heads: 2, d_ff: 64}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 1.0e-3}}
  batch: {{sequences: 8}}
  evaluation: {{every_steps: {EVERY}, sequences: 16}}
  checkpoint: {{every_steps: {EVERY}}}
  runtime: {{device: cpu, precision: fp32, compile: never, threads: 1}}
design: list
variants: {{wide: {{overrides: {{model.d_ff: 128}}}}}}
stages:
  ranking:
    budget: {{steps: {STEPS}}}
    resources: {{parallel: 2}}
    retries: 1
    promotion: {{policy: best_mean}}
"""
BASELINE, WIDE = "baseline/seed-42", "wide/seed-42"


@dataclass
class Conductor:
    """A process that conducts the study, on this machine."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        """All that it has printed."""
        return self.output.read_text(errors="replace")

    def ends(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the conductor runs after {seconds:.0f} s:\n{self.said()[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL: no chance to say anything."""
        self.process.kill()
        self.process.wait()


@dataclass
class Scene:
    """One store, one namespace, and the study in both."""

    cluster: Any
    namespace: str
    store: str
    folder: Path
    wait_for: Callable[..., Any]
    study: str = STUDY
    slow: str = SLOW
    jobs: dict[str, Any] = field(default_factory=dict)
    """Of PODIUM_JOBS, over what every scene has."""
    env: dict[str, str] = field(default_factory=dict)
    conductors: list[Conductor] = field(default_factory=list)

    def conduct(self, **env: str) -> Conductor:
        """Start a conductor."""
        number = len(self.conductors)
        file, output = self.folder / "study.yaml", self.folder / f"conductor-{number}.log"
        file.write_text(self.study)
        jobs = {
            "namespace": self.namespace,
            "image": self.cluster.trainer_image,
            "image_pull_policy": "Never",
            "grace_seconds": 30,
            "memory": "1Gi",
            "cpu": "50m",
            "shared_memory": "64Mi",
            "scratch": "1Gi",
            **self.jobs,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PODIUM_"))}
        tracking = f"sqlite:///{self.folder}/mlflow.db"
        with output.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(CONDUCT), str(file), self.store],
                env={
                    **kept,
                    "OMP_NUM_THREADS": "1",
                    "PODIUM_MLFLOW_URI": tracking,
                    **self.cluster.environment,
                    "PODIUM_JOBS": yaml.safe_dump(jobs),
                    "PODIUM_TRIAL_COMMAND": shlex.join(["python", "-c", SLOW, "train", "--run-spec"]),
                    **self.env,
                    **env,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.conductors.append(Conductor(process, output))
        return self.conductors[-1]

    def podium(self, *arguments: str, **env: str) -> str:
        """What the command line prints."""
        command = "import sys; sys.argv[0] = 'podium'; from podium.pipelines.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **self.cluster.environment, **self.env, **env},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def run(self) -> str:
        """The run's id."""
        (found,) = {key.split("/runs/")[1].split("/")[0] for key in self.objects("/study.yaml")}
        return found

    # ---- the store ----

    @property
    def bucket(self) -> str:
        return self.store.removeprefix("s3://").partition("/")[0]

    def objects(self, part: str = "") -> list[str]:
        """Objects of the store whose key contains `part`."""
        pages = self.cluster.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []) if part in entry["Key"])

    def read(self, key: str) -> bytes:
        return self.cluster.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def one(self, part: str) -> bytes | None:
        """The object whose key contains `part`; None where there is none."""
        found = self.objects(part)
        return self.read(found[0]) if found else None

    def result(self, trial: str = BASELINE) -> dict[str, Any] | None:
        found = self.one(f"{trial}/result.json")
        return None if found is None else json.loads(found)

    def attempts(self, trial: str = BASELINE) -> list[dict[str, Any]]:
        found = self.one(f"{trial}/attempts.json")
        return [] if found is None else json.loads(found)["attempts"]

    def ledger(self, kind: str) -> list[dict[str, Any]]:
        entries = [json.loads(self.read(key)) for key in self.objects("/ledger/")]
        return [entry for entry in entries if entry["kind"] == kind]

    def log(self, trial: str = BASELINE) -> str:
        """What a trial printed, over all attempts, as `podium logs` has it."""
        return (self.one(f"logs/ranking/{trial.replace('/', '-')}.log") or b"").decode()

    def picture(self, trial: str = BASELINE) -> dict[str, Any]:
        """What of a trial must not depend on what happened to it: every loss, and the final weights."""
        metrics = [json.loads(line) for line in (self.one(f"{trial}/metrics.jsonl") or b"").splitlines()]
        losses = [{key: line.get(key) for key in ("step", "tokens", "train_loss", "val_loss")} for line in metrics]
        result = self.result(trial) or {}
        kept = {key: result.get(key) for key in ("status", "steps", "tokens", "final_val_loss", "best_val_loss")}
        weights = self.one(f"{trial}/checkpoints/final-model.safetensors") or b""
        return {"losses": losses, "weights": hashlib.sha256(weights).hexdigest(), **kept}

    # ---- the cluster ----

    def listed(self, kind: str, selector: str = "app.kubernetes.io/component=trial") -> list[dict[str, Any]]:
        """The namespace's `jobs` or `pods`, as the server shows them. Asked often: kubectl would take a second each."""
        ask = {"jobs": self.cluster.batch.list_namespaced_job, "pods": self.cluster.core.list_namespaced_pod}[kind]
        return json.loads(ask(self.namespace, label_selector=selector, _preload_content=False).data)["items"]

    def job_uids(self) -> dict[str, str]:
        return {job["metadata"]["name"]: job["metadata"]["uid"] for job in self.listed("jobs")}

    def pod(self, trial: str = BASELINE) -> dict[str, Any] | None:
        """The trial's pod that runs."""
        variant = trial.partition("/")[0]
        for pod in self.listed("pods", f"podium.dev/variant={variant}"):
            if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp"):
                return pod
        return None

    def step(self, trial: str = BASELINE) -> int:
        """The newest step that a trial's running pod has evaluated, 0 before the first."""
        pod = self.pod(trial)
        if pod is None:
            return 0
        try:
            answer = self.cluster.core.read_namespaced_pod_log(
                pod["metadata"]["name"], self.namespace, _preload_content=False
            )
        except self.cluster.no_answer:  # it has only just been started, or has just gone
            return 0
        log = answer.data.decode()
        return max(map(int, re.findall(r"^step (\d+)  validation", log, re.MULTILINE)), default=0)

    def resumed(self, trial: str = BASELINE) -> int:
        """The step from which the trial's last attempt went on, by its pod's log."""
        variant = trial.partition("/")[0]
        pods = self.listed("pods", f"podium.dev/variant={variant}")
        newest = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])["metadata"]["name"]
        log = self.cluster.kubectl("-n", self.namespace, "logs", newest)
        found = re.search(r"from step (\d+) \(ckpt-step-", log)
        assert found, f"the last attempt did not go on from a checkpoint:\n{log[:2000]}"
        return int(found[1])

    def trains(
        self, trial: str = BASELINE, *, step: int = 3 * EVERY, seconds: float = PATIENCE_SECONDS
    ) -> dict[str, Any]:
        """The trial's pod, once it has come to `step`."""
        self.wait_for(f"{trial} comes to step {step}", lambda: self.step(trial) >= step, seconds)
        pod = self.pod(trial)
        assert pod is not None, f"{trial} ended before anything could happen to it"
        return pod

    def finished(self, trial: str = BASELINE) -> bool:
        return self.result(trial) is not None


def processes_of(pod: dict[str, Any]) -> list[int]:
    """The processes of a pod's containers on this machine, without the one that holds its namespaces."""
    uid, found = pod["metadata"]["uid"], []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if uid in (place / "cgroup").read_text() and b"/pause" not in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return sorted(found)


@pytest.fixture
def sigkill(own_cluster: None) -> Callable[[dict[str, Any]], None]:
    """Ends a pod's processes by SIGKILL, from outside, as a crash would."""

    def kill(pod: dict[str, Any]) -> None:
        found = processes_of(pod)
        assert found, "the pod has no processes on this machine"
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    return kill


@pytest.fixture
def device(cluster: Any) -> Iterator[str]:
    """An extended resource of which the cluster has exactly one, for this test alone."""
    name = f"podium.dev/test-{uuid.uuid4().hex[:8]}"
    path = f"/status/capacity/{name.replace('/', '~1')}"

    def patch(operation: dict[str, str]) -> None:
        change = ["--subresource=status", "--type=json", "-p", json.dumps([operation])]
        cluster.kubectl("patch", "node", cluster.node, *change)

    patch({"op": "add", "path": path, "value": "1"})
    yield name
    patch({"op": "remove", "path": path})


@pytest.fixture
def scene(
    cluster: Any,
    namespace: str,
    store: str,
    tmp_path: Path,
    wait_for: Callable[..., Any],
    request: pytest.FixtureRequest,
) -> Iterator[Scene]:
    made = Scene(cluster, namespace, store, tmp_path, wait_for)
    yield made
    for conductor in made.conductors:
        if conductor.process.poll() is None:
            conductor.kill()
    if getattr(request.node, "failed", False):
        for number, conductor in enumerate(made.conductors):
            print(f"--- conductor {number}\n{conductor.said()[-4000:]}")
        for trial in (BASELINE, WIDE):
            print(f"--- {trial}: {made.attempts(trial)}\n{made.log(trial)[-3000:]}")


@pytest.fixture(scope="session")
def undisturbed(
    cluster: Any,
    make_namespace: Callable[..., str],
    make_bucket: Callable[[], str],
    wait_for: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, Any]]:
    """What the study's trials leave when nothing happens to them. Run once for all tests and all their processes."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, file = tmp_path_factory.mktemp("undisturbed"), shared / "undisturbed.json"
    with (shared / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            made = Scene(cluster, make_namespace(), f"s3://{make_bucket()}/store", folder, wait_for)
            began = time.monotonic()
            conductor = made.conduct()
            assert conductor.ends() == 0, conductor.said()
            print(f"undisturbed: {time.monotonic() - began:.1f} s")
            pictures = {trial: made.picture(trial) for trial in (BASELINE, WIDE)}
            assert len(pictures[BASELINE]["losses"]) >= STEPS
            file.write_text(json.dumps(pictures))
    return json.loads(file.read_text())
