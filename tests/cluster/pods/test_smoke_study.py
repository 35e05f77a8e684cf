"""The smoke study with its trials as Jobs, started from this machine: the results of the same study run without Jobs.

The local run is `in_pods`: launcher `process`, in one pod of the same trainer image on the same node, from the same
text on S3. Not this machine's own Python: its PyTorch is the same, but nobody promises its C library is.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.core, pytest.mark.timeout(1500)]

GPU = "nvidia.com/gpu"
LEFT = 2
"""GPUs that the study can get at once, of the four that it asks for."""


class Watch(threading.Thread):
    """Looks at every pod again and again, until it is told to stop: who holds GPUs of `node`, who waits for one."""

    def __init__(self, cluster, namespace, node):
        super().__init__(daemon=True)
        self.cluster, self.namespace, self.node = cluster, namespace, node
        self.most_on_node = self.most_of_study = 0
        self.waited: set[str] = set()
        self.requests: dict[str, int] = {}
        self.images: set[str] = set()
        self.looks = 0
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.3):
            # A look that fails while the API server is busy is one look less.
            with suppress(Exception):
                self.look()

    def look(self):
        on_node = of_study = 0
        for pod in self.cluster.core.list_pod_for_all_namespaces(resource_version="0").items:
            gpus = gpus_of(pod)
            ours = pod.metadata.namespace == self.namespace and "podium.dev/run" in (pod.metadata.labels or {})
            if ours:
                self.requests[pod.metadata.name] = gpus
                self.images |= {each.image for each in pod.spec.containers}
            if pod.status.phase in ("Succeeded", "Failed") or not gpus:
                continue
            if pod.spec.node_name is None:
                conditions = pod.status.conditions or []
                if ours and any(GPU in (each.message or "") for each in conditions if each.type == "PodScheduled"):
                    self.waited.add(pod.metadata.name)
                continue
            on_node += gpus if pod.spec.node_name == self.node else 0
            of_study += gpus if ours else 0
        self.looks += 1
        self.most_on_node = max(self.most_on_node, on_node)
        self.most_of_study = max(self.most_of_study, of_study)


def gpus_of(pod):
    limits = [(each.resources.limits or {}) for each in pod.spec.containers if each.resources]
    return sum(int(each.get(GPU, 0)) for each in limits)


@pytest.fixture(scope="module")
def as_jobs(
    cluster,
    undisturbed,
    in_pods,
    make_namespace,
    make_bucket,
    study_file,
    podium,
    read_store,
    wait_for,
    tmp_path_factory,
):
    """The same study by `podium run --launcher job` from this machine, while most GPUs are held by somebody else."""
    with undisturbed():
        namespace, store, state = make_namespace(), f"s3://{make_bucket()}/store", tmp_path_factory.mktemp("state")
        watch, capacity = run_as_jobs(cluster, namespace, store, state, study_file, podium, wait_for)
        return watch, capacity, read_store(store)


def run_as_jobs(cluster, namespace, store, state, study_file, podium, wait_for):
    node = next(node for node in cluster.core.list_node().items if not node.spec.taints)  # no simulated one
    capacity = int(node.status.allocatable[GPU])
    hold(cluster, namespace, wait_for, capacity - LEFT)
    jobs = {"namespace": namespace, "image_pull_policy": "Never", "scratch": "2Gi", "shared_memory": "256Mi"}
    watch = Watch(cluster, namespace, node.metadata.name)
    watch.start()
    began = time.monotonic()
    ran = podium(
        *("run", study_file, "--profile", "smoke", "--gpus", 2 * LEFT, "--launcher", "job", "--store", store, "--json"),
        seconds=1200,
        PODIUM_JOBS=json.dumps(jobs),
        XDG_STATE_HOME=str(state),
    )
    seconds = time.monotonic() - began
    watch.over.set()
    watch.join()
    if ran.returncode != 0:
        print(cluster.kubectl("-n", namespace, "get", "jobs,pods,events", check=False)[-6000:])
    assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-3000:]
    print(
        f"{len(watch.requests)} pods, {seconds:.0f} s, {watch.looks} looks, at most {watch.most_of_study} GPUs at once"
    )
    return watch, capacity


def hold(cluster, namespace, wait_for, gpus):
    """A pod that holds GPUs and does nothing."""
    container = {
        "name": "idle",
        "image": cluster.steps_image,
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "resources": {"limits": {GPU: str(gpus)}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    locked = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"securityContext": locked, "containers": [container], "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "somebody-else"}, "spec": spec}
    cluster.apply(pod, namespace=namespace)
    phase = ("-n", namespace, "get", "pod", "somebody-else", "-o", "jsonpath={.status.phase}")
    # Other tests take GPUs too, for as long as a trial of theirs runs.
    wait_for("the GPUs are held", lambda: cluster.kubectl(*phase) == "Running", 300)


def test_the_winner_is_the_same_as_without_jobs(as_jobs, in_pods):
    _, _, stored = as_jobs
    assert stored.winner == in_pods.stored.winner


def test_every_trial_has_the_same_loss_bit_for_bit(as_jobs, in_pods):
    _, _, stored = as_jobs
    assert stored.losses == in_pods.stored.losses
    assert len(stored.losses) >= 7
    statuses = {trial: result["status"] for trial, result in stored.results.items()}
    assert statuses == {trial: result["status"] for trial, result in in_pods.stored.results.items()}


def test_every_trial_was_a_pod_of_the_trainer_image_with_a_gpu_of_its_own(as_jobs, cluster):
    watch, _, stored = as_jobs
    assert watch.images == {cluster.trainer_image}
    assert set(watch.requests.values()) == {1}
    # a trial is a pod, and so are the gate's two halves and each finalist's evaluation
    assert len(watch.requests) > len(stored.results) + 2


def test_never_more_gpus_than_the_node_has_and_the_rest_waits(as_jobs):
    watch, capacity, _ = as_jobs
    assert watch.looks > 20
    assert watch.most_of_study == LEFT, "two of the four that the stage asks for at once are there"
    assert watch.most_on_node <= capacity
    assert watch.waited, "some trials waited for a GPU"


def test_the_laptop_left_nothing_running(as_jobs, cluster):
    watch, _, _ = as_jobs
    listed = json.loads(cluster.kubectl("-n", watch.namespace, "get", "jobs", "-o", "json"))["items"]
    active = [job["metadata"]["name"] for job in listed if job.get("status", {}).get("active")]
    assert not active
