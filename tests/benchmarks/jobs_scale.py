"""Trials as Jobs on nodes that kwok simulates: time, API calls and memory of their conductor at 10, 100 and 1,000.

    KUBECONFIG=… PODIUM_TEST_S3=… python tests/benchmarks/jobs_scale.py --trials 10 100 1000
    … --trials 100 --hold 60      hold them all running for a minute, and count the conductor's calls meanwhile

API server, scheduler and controllers are real, and so is the store; kwok plays the pods, and a stand-in writer puts a
result into the store before it lets a pod succeed. One trial's pod succeeds without a result: it must be `broken`.
Needs kubectl and kwok on the PATH and rights to make nodes; cleans up after itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STAGES = Path(__file__).with_name("jobs_stages.yaml")
NODE_GPUS, SEEDS = 200, 10
LABEL = {"podium.dev/simulated": "true"}
TAINT = {"key": "podium.dev/simulated", "value": "true", "effect": "NoSchedule"}
WITHOUT_RESULT = "v1"
"""The variant of whose first seed the pod succeeds without a result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--hold", type=float, default=0.0, help="seconds for which all trials run before any may end")
    parser.add_argument("--conduct", nargs=2, metavar=("STORE", "RUN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.conduct:
        conduct_stage(*given.conduct)
        return
    with simulated_nodes(max(given.trials)):
        rows = [measure(trials, given.hold) for trials in given.trials]
    print(
        "| trials | s | calls | calls a trial | largest kinds | peak MB | held: calls a second |\n" + "|---" * 7 + "|"
    )
    for row in rows:
        kinds = ", ".join(f"{kind} {number}" for kind, number in Counter(row["calls"]).most_common(3))
        print(
            f"| {row['trials']} | {row['seconds']:.0f} | {row['all_calls']} | {row['all_calls'] / row['trials']:.2f} "
            f"| {kinds} | {row['peak_mb']:.0f} | {row['held_calls_per_second']} |"
        )
    print(json.dumps(rows))


def measure(trials: int, hold: float) -> dict[str, Any]:
    """Conduct a stage of so many trials in a namespace and a bucket of its own."""
    name = f"podium-scale-{uuid.uuid4().hex[:8]}"
    s3 = client_of_s3()
    s3.create_bucket(Bucket=name)
    kubectl("create", "namespace", name)
    try:
        run = make_run(f"s3://{name}/store", trials)
        settings = {
            "namespace": name,
            "gpu_classes": {"simulated": {"node_selector": LABEL, "tolerations": [{"operator": "Exists"}]}},
            "ttl_seconds": 600,
            "check_sources": False,
        }
        environment = {**os.environ, "PODIUM_JOBS": json.dumps(settings)}
        writer = Writer(name, run.storage, expected=trials, hold=hold)
        began = time.monotonic()
        command = [sys.executable, __file__, "--conduct", run.store_uri, run.id]
        conductor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        writer.calls_of = conductor.pid
        with writer:
            printed, _ = conductor.communicate()
        seconds = time.monotonic() - began
        if conductor.returncode != 0:
            raise SystemExit(f"the conductor ended with {conductor.returncode}:\n{printed}")
        told = json.loads(printed.splitlines()[-1])
        check(run, trials, told)
        held = told["held"]
        return {
            "trials": trials,
            "seconds": seconds,
            "calls": told["calls"],
            "all_calls": sum(told["calls"].values()),
            "peak_mb": told["peak_mb"],
            "held_calls_per_second": round(held["calls"] / held["seconds"], 3) if held else None,
        }
    finally:
        kubectl("delete", "namespace", name, "--wait=false", check=False)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", []):
                s3.delete_object(Bucket=name, Key=entry["Key"])
        s3.delete_bucket(Bucket=name)


def check(run: Any, trials: int, told: dict[str, Any]) -> None:
    """Every trial has a result, and the one whose pod wrote none is broken."""
    results = [(trial, run.result(trial.key)) for trial in run.trials("first")]
    assert len(results) == trials == told["finished"], (len(results), told)
    broken = [trial.key.name for trial, result in results if result.status.value == "broken"]
    assert broken == [f"first/{WITHOUT_RESULT}/seed-42"], broken


def make_run(store: str, trials: int) -> Any:
    """The run of a study with so many trials, 10 seeds a variant from 100 on."""
    from podium.components.study.load import load_study
    from podium.components.study.run import Run

    seeds = SEEDS if trials >= 100 else 1
    variants = {
        f"v{number}": {"overrides": {"optimizer.learning_rate": number / 1e6}} for number in range(1, trials // seeds)
    }
    study = {
        "name": "scale",
        "question": "How much does it take to conduct many Jobs?",
        "data": {"corpus": {"source": "builtin"}, "vocab_size": 512},
        "config": {
            "model": {"family": "transformer", "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16},
            "data": {"sequence_length": 50},
            "optimizer": {"learning_rate": 0.001},
            "batch": {"sequences": 2},
            "evaluation": {"every_steps": 10},
            "checkpoint": {"every_steps": 20},
            "runtime": {"device": "cpu", "threads": 1},
        },
        "design": "list",
        "variants": variants,
        "stages": {
            "first": {
                "budget": {"tokens": 4000},
                "seeds": seeds,
                "resources": {"parallel": trials, "gpus_per_trial": 1, "gpu_class": "simulated"},
                "retries": 0,
                "max_broken": 1,
                "promotion": {"policy": "best_mean"},
            }
        },
    }
    return Run.create(store, load_study(json.dumps(study)))


def conduct_stage(store: str, identity: str) -> None:
    """The conductor, in a process of its own; prints what it took as JSON. SIGUSR1 begins and ends a count."""
    from podium.components.launch.conductor import conduct
    from podium.components.launch.open import open_launcher
    from podium.components.study.run import Run

    run = Run.open(store, identity)
    resources = run.study.stages["first"].resources
    launcher: Any = open_launcher("job", run, "first", resources, parallel=resources.parallel)
    cluster, marks = launcher._cluster, list[tuple[float, int]]()
    signal.signal(signal.SIGUSR1, lambda *_: marks.append((time.monotonic(), sum(cluster.calls.values()))))
    conducted = conduct(run, "first", launcher)
    held = {"seconds": marks[1][0] - marks[0][0], "calls": marks[1][1] - marks[0][1]} if len(marks) == 2 else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"calls": cluster.calls, "peak_mb": peak, "finished": conducted.finished, "held": held}))


class Writer:
    """Plays the trainers: writes the result of each trial whose pod runs, then lets the pod succeed."""

    def __init__(self, namespace: str, storage: Any, *, expected: int, hold: float) -> None:
        self._namespace, self._storage = namespace, storage
        self._expected, self._hold = expected, hold
        self._over = threading.Event()
        self.calls_of = 0
        """Process whose calls are counted while all pods are held."""

    def __enter__(self) -> Writer:
        self._thread = threading.Thread(target=self._play)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _play(self) -> None:
        from kubernetes import client, config

        core = client.CoreV1Api(config.new_client_from_config())
        core.api_client.set_default_header("Content-Type", "application/merge-patch+json")
        begun: set[str] = set()
        held_until: float | None = 0.0 if not self._hold else None
        with ThreadPoolExecutor(8) as pool:
            while not self._over.wait(0.5):
                try:
                    pods = self._running(core)
                except Exception as error:  # noqa: BLE001  an API server that restarts is the launcher's to survive
                    print(f"the writer: {error}", file=sys.stderr)
                    continue
                if held_until is None and len(pods) == self._expected:
                    time.sleep(5.0)  # for the conductor to see that they run
                    os.kill(self.calls_of, signal.SIGUSR1)
                    time.sleep(self._hold)
                    os.kill(self.calls_of, signal.SIGUSR1)
                    held_until = time.monotonic()
                if held_until is not None:
                    fresh = [pod for pod in pods if pod["metadata"]["name"] not in begun]
                    ended = pool.map(lambda pod: self._succeed(core, pod), fresh)
                    begun |= {pod["metadata"]["name"] for pod, done in zip(fresh, ended, strict=True) if done}

    def _running(self, core: Any) -> list[dict[str, Any]]:
        listed = core.list_namespaced_pod(
            self._namespace,
            label_selector="app.kubernetes.io/component=trial",
            field_selector="status.phase=Running",
            _preload_content=False,
        )
        pods: list[dict[str, Any]] = json.loads(listed.data)["items"]
        return pods

    def _succeed(self, core: Any, pod: dict[str, Any]) -> bool:
        """Whether the pod could be ended; if not, it is tried again."""
        name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
        folder = pod["metadata"]["annotations"]["podium.dev/folder"].removeprefix(f"{self._storage.uri}/")
        if (labels["podium.dev/variant"], labels["podium.dev/seed"]) != (WITHOUT_RESULT, "42"):
            spec = self._storage.read_json(f"{folder}/config.json")
            loss = 3.0 + int(labels["podium.dev/seed"]) / 1e4
            result = {
                "run_name": folder,
                "fingerprint": spec["fingerprint"],
                "labels": spec["labels"],
                "status": "completed",
                "reason": "all steps done",
                "seed": spec["config"]["seed"],
                "steps": 40,
                "tokens": 4000,
                "final_val_loss": loss,
                "best_val_loss": loss,
                "training_seconds": 1.0,
            }
            self._storage.write_json(f"{folder}/result.json", result)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        container = {"name": "trial", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Succeeded", "containerStatuses": [{**container, "state": {"terminated": ended}}]}
        try:
            core.patch_namespaced_pod_status(name, self._namespace, {"status": status}, _preload_content=False)
        except Exception as error:  # noqa: BLE001  likewise
            print(f"the writer: {error}", file=sys.stderr)
            return False
        return True


@contextlib.contextmanager
def simulated_nodes(trials: int) -> Iterator[None]:
    """Nodes for so many trials of one GPU each, and the kwok that plays them."""
    names = [f"simulated-{uuid.uuid4().hex[:6]}" for _ in range(-(-trials // NODE_GPUS))]
    room = {
        "cpu": "1000",
        "memory": "10Ti",
        "ephemeral-storage": "10Ti",
        "pods": "1000",
        "nvidia.com/gpu": str(NODE_GPUS),
    }
    for name in names:
        metadata = {"name": name, "labels": LABEL, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}}
        status = {"capacity": room, "allocatable": room}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [TAINT]}, "status": status}
        kubectl("apply", "-f", "-", stdin=json.dumps(node))
    with tempfile.TemporaryFile() as log:
        selector = ",".join(f"{key}={value}" for key, value in LABEL.items())
        command = ["kwok", "--kubeconfig", os.environ["KUBECONFIG"], "--config", str(STAGES), "--cidr", "10.199.0.0/16"]
        kwok = subprocess.Popen(
            [
                *command,
                "--manage-nodes-with-label-selector",
                selector,
                "--node-ip",
                "10.199.0.1",
                "--node-lease-duration-seconds",
                "40",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            for name in names:
                kubectl("wait", "--for=condition=Ready", f"node/{name}", "--timeout=60s")
            yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode()[-3000:])
            raise
        finally:
            for name in names:
                kubectl("delete", "node", name, check=False)
            kwok.terminate()
            kwok.wait()


def client_of_s3() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["PODIUM_TEST_S3"])


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
