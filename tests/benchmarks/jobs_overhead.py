"""From the creation of a trial's Job to its first training step: what lies in between, and what of it is ours.

    KUBECONFIG=… PODIUM_TEST_S3=… python tests/benchmarks/jobs_overhead.py --image podium/python-trainer:0.1.0 --times 5

The pod's clocks and ours are one machine's. `start` is from the create call to the pod's first process: scheduling, the
sandbox, the container. `imports` is the same import in the same process. What is left is the entry, the lease, the
data from S3, the model, and the first step itself: wanted < 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
import uuid
from typing import Any

SCRIPT = """
import json, sys, time
begun = time.time()
import podium.trainer.builtin.cli, podium.trainer.builtin.run, podium.trainer.builtin.cli
imported = time.time()
from podium.trainer.builtin.setup import Stepper
step = Stepper.step
def first(self, *arguments, **options):
    Stepper.step = step
    taken = step(self, *arguments, **options)
    print("CLOCKS", json.dumps([pid_1, begun, imported, time.time()]), flush=True)
    return taken
Stepper.step = first
ticks = int(open("/proc/1/stat").read().rpartition(")")[2].split()[19])
pid_1 = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / 100
podium.trainer.builtin.cli.run_in_study(sys.argv[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="the trainer's image; default: that of this version")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    name = f"podium-overhead-{uuid.uuid4().hex[:8]}"
    s3 = client_of_s3()
    s3.create_bucket(Bucket=name)
    prepare_namespace(name)
    try:
        rows = measure(name, given.image, given.times)
    finally:
        subprocess.run(["kubectl", "delete", "namespace", name, "--wait=false"], check=False, capture_output=True)
        for entry in s3.list_objects_v2(Bucket=name).get("Contents", []):
            s3.delete_object(Bucket=name, Key=entry["Key"])
        s3.delete_bucket(Bucket=name)
    medians = {part: round(statistics.median(row[part] for row in rows), 2) for part in rows[0]}
    print("| start | entry | imports | to the first step | ours: entry and to the first step |\n" + "|---" * 5 + "|")
    for row in [*rows, medians]:
        print("| " + " | ".join(f"{row[part]:.2f}" for part in ("start", "entry", "imports", "rest", "ours")) + " |")
    print(json.dumps({"seconds": medians, "times": given.times}))


def measure(name: str, image: str | None, times: int) -> list[dict[str, float]]:
    """Start the same trial so often, one after the other."""
    from podium.components.launch.job import JobLauncher
    from podium.components.launch.job_cluster import open_cluster
    from podium.components.launch.job_manifest import JobMaker, JobSettings, RunOnCluster
    from podium.components.launch.launcher import Task
    from podium.components.launch.records import Records
    from podium.components.prepare_data.step import prepare_datasets
    from podium.components.study.load import load_study
    from podium.components.study.run import Run
    from podium.trainer.trial.storage import join_uri

    run = Run.create(f"s3://{name}/store", load_study(json.dumps(STUDY)))
    prepare_datasets(run)
    (trial,) = run.trials("first")
    settings = {"image_pull_policy": "IfNotPresent", "scratch": "1Gi", "shared_memory": "64Mi"}
    if image is not None:
        settings["image"] = image
    of_run = RunOnCluster(run.store_uri, run.id, run.uri, "1", "first")
    maker = JobMaker(of_run, JobSettings.model_validate(settings), run.study.stages["first"].resources)
    launcher = JobLauncher(open_cluster(name), maker, slots=1)
    rows = []
    for attempt in range(1, times + 1):
        run.storage.delete_folder(trial.key.folder)
        run.storage.delete(trial.key.log)
        Records(run, "first").spec(trial)
        argv = ["python", "-c", SCRIPT, join_uri(run.uri, trial.key.folder)]
        created = time.time()
        launcher.start(Task(trial.key.name, argv, trial.key.log, attempt=attempt))
        while not (ended := launcher.poll(5.0)):
            pass
        log = run.storage.read_text(trial.key.log)
        assert ended[0].code == 0, log
        line = next(line for line in log.splitlines() if line.startswith("CLOCKS "))
        pid_1, begun, imported, stepped = json.loads(line.removeprefix("CLOCKS "))
        row = {
            "start": pid_1 - created,
            "entry": begun - pid_1,
            "imports": imported - begun,
            "rest": stepped - imported,
        }
        rows.append({**row, "ours": row["entry"] + row["rest"]})
    launcher.close()
    return rows


STUDY: dict[str, Any] = {
    "name": "overhead",
    "question": "How long does a Job take to its first step?",
    "data": {"corpus": {"source": "builtin", "max_bytes": "600k"}, "vocab_size": 512},
    "config": {
        "model": {"family": "transformer", "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64},
        "data": {"sequence_length": 32},
        "optimizer": {"learning_rate": 0.001},
        "batch": {"sequences": 8},
        "evaluation": {"every_steps": 10, "sequences": 16},
        "checkpoint": {"every_steps": 10},
        "runtime": {"device": "cpu", "precision": "fp32", "compile": "never", "threads": 1},
    },
    "design": "list",
    "stages": {"first": {"budget": {"steps": 10}, "promotion": {"policy": "best_mean"}}},
}


def prepare_namespace(name: str) -> None:
    """A namespace under Pod Security `restricted` with what the pods need to reach the store."""
    metadata = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    keys = {key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    address = {"AWS_ENDPOINT_URL": os.environ["PODIUM_TEST_S3"], "AWS_REGION": os.environ.get("AWS_DEFAULT_REGION", "")}
    place = {"namespace": name}
    items = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "podium-credentials", **place}, "stringData": keys},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "podium-config", **place}, "data": address},
    ]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    subprocess.run(["kubectl", "apply", "-f", "-"], input=listed, text=True, check=True, capture_output=True)


def client_of_s3() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["PODIUM_TEST_S3"])


if __name__ == "__main__":
    main()
