"""A task as a `batch/v1` Job: the whole of what Podium asks a cluster for.

Pods satisfy Pod Security `restricted` and write to two places only, /tmp and /dev/shm. A Job makes one attempt
(backoffLimit 0, no policy that starts pods again): the conductor sees how it ended and makes the next one, so that what
counts as a failure is decided in one place, and an attempt is the same thing whatever starts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from podium.components.launch.job_names import APP, FOLDER, JOB_NAME, RUN_URI, TASK, RunOnCluster, label
from podium.components.launch.job_settings import GpuClass, JobSettings
from podium.components.launch.launcher import ATTEMPT_VARIABLE, USER_ERROR, Task
from podium.components.study.schema import Resources
from podium.trainer.storage import join_uri

CONTAINER = "trial"
UID = 10001
"""The images' user."""
SCRATCH, SHARED_MEMORY = "/tmp", "/dev/shm"  # noqa: S108  the pod's own volumes
PORT = 29500
"""Of the first rank's rendezvous store."""
ENTRY = "podium.components.launch.job_entry"
WITHOUT_MESH = {"sidecar.istio.io/inject": "false"}
"""A sidecar would outlive the trial, and the Job would never be complete."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class JobMaker:
    """Makes the Jobs of one step of a run."""

    run: RunOnCluster
    settings: JobSettings
    resources: Resources
    owner: Mapping[str, Any] | None = None
    """ownerReference of the Workflow that the conductor belongs to."""
    sources: str | None = None
    """Digest of the trainer's sources that the image must have; None for any."""

    def job(self, task: Task) -> Manifest:
        """The Job that makes this attempt at the task. The settings have been checked against the study."""
        settings, nodes = self.settings, self.resources.nodes
        name = self.run.job_name(task)
        spec: Manifest = {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": settings.ttl_seconds,
            # Neither rule starts a pod again: they end the Job with words that outlive the pod.
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [USER_ERROR]},
                    },
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": self._metadata(task), "spec": self._pod(task, name)},
        }
        if settings.deadline_seconds is not None:
            spec["activeDeadlineSeconds"] = settings.deadline_seconds
        if settings.queue is not None:
            spec["suspend"] = True
        if nodes > 1:
            spec |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
        metadata = {"name": name, **self._metadata(task)}
        if settings.queue is not None:
            metadata["labels"] = {**metadata["labels"], "kueue.x-k8s.io/queue-name": settings.queue}
        if self.owner is not None:
            metadata["ownerReferences"] = [dict(self.owner)]
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}

    def service(self, name: str, uid: str) -> Manifest:
        """The headless Service by which the pods of the multi-node Job `name` find their first; it goes with the Job.

        Ranks look for each other before anybody is ready, so addresses are published at once.
        """
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": self.run.labels, "ownerReferences": [owner]},
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {JOB_NAME: name},
                "ports": [{"name": "rendezvous", "port": PORT}],
            },
        }

    def _metadata(self, task: Task) -> Manifest:
        own = {f"podium.dev/{key}": label(value) for key, value in task.labels.items()}
        annotations = {TASK: task.name, RUN_URI: self.run.run_uri}
        if task.folder:
            annotations[FOLDER] = join_uri(self.run.run_uri, task.folder)
        return {
            # ours go over the site's: a selector must find what it made
            "labels": {**self.settings.labels, **APP, **own, **self.run.labels, **WITHOUT_MESH},
            "annotations": {**self.settings.annotations, **annotations},
        }

    def _pod(self, task: Task, name: str) -> Manifest:
        settings, gpu_class = self.settings, self._gpu_class(task)
        pod: Manifest = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": settings.grace_seconds,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UID,
                "runAsGroup": UID,
                "fsGroup": UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self._container(task, name, gpu_class)],
            "volumes": [
                {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch}},
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
            ],
        }
        if self.resources.nodes > 1:
            pod["subdomain"] = name
        if settings.service_account is not None:
            pod["serviceAccountName"] = settings.service_account
        if settings.priority_class is not None:
            pod["priorityClassName"] = settings.priority_class
        if settings.image_pull_secrets:
            pod["imagePullSecrets"] = [{"name": each} for each in settings.image_pull_secrets]
        if gpu_class is not None and gpu_class.node_selector:
            pod["nodeSelector"] = gpu_class.node_selector
        if gpu_class is not None and gpu_class.tolerations:
            pod["tolerations"] = gpu_class.tolerations
        return pod

    def _container(self, task: Task, name: str, gpu_class: GpuClass | None) -> Manifest:
        settings, nodes = self.settings, self.resources.nodes
        gpus = task.devices // nodes
        entry = ["python", "-m", ENTRY, "--log", join_uri(self.run.run_uri, task.log), "--ranks", str(max(gpus, 1))]
        if nodes > 1:
            entry += ["--nodes", str(nodes), "--first", f"{name}-0.{name}", "--port", str(PORT)]
            entry += ["--patience", f"{settings.start_seconds:g}"]
        if self.sources is not None:
            entry += ["--sources", self.sources]
        # the conductor's own interpreter means nothing in another image
        argv = ["python", *task.argv[1:]] if task.argv[0] == sys.executable else task.argv
        container: Manifest = {
            "name": CONTAINER,
            "image": settings.image,
            "command": [*entry, "--", *argv],
            "env": [{"name": key, "value": value} for key, value in self._environment(task).items()],
            "envFrom": self._env_from(),
            "resources": self._requests(gpus, gpu_class),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            # the last lines of a failed pod come with its status, so that nobody has to ask for them
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {"name": "scratch", "mountPath": SCRATCH},
                {"name": "shared-memory", "mountPath": SHARED_MEMORY},
            ],
        }
        if settings.image_pull_policy is not None:
            container["imagePullPolicy"] = settings.image_pull_policy
        return container

    def _environment(self, task: Task) -> dict[str, str]:
        own = {
            ATTEMPT_VARIABLE: str(task.attempt),
            "PODIUM_IMAGE": self.settings.image,
            "PODIUM_PATIENCE_SECONDS": f"{self.settings.patience_seconds:g}",
        }
        return {**own, **{key: value for key, value in task.env.items() if value}, **self.settings.env}

    def _env_from(self) -> list[Manifest]:
        settings, sources = self.settings, []
        if settings.config_map is not None:
            reference = {"name": settings.config_map, "optional": not settings.config_map_required}
            sources.append({"configMapRef": reference})
        if settings.secret is not None:
            sources.append({"secretRef": {"name": settings.secret, "optional": not settings.secret_required}})
        return sources

    def _requests(self, gpus: int, gpu_class: GpuClass | None) -> Manifest:
        """Memory and GPUs are limits too; processor time is not, since a limit would only slow a trial down."""
        requests: dict[str, str] = {}
        limits: dict[str, str] = {}
        if cpu := self.resources.cpu or self.settings.cpu:
            requests["cpu"] = cpu
        if memory := self.resources.memory or self.settings.memory:
            requests["memory"] = limits["memory"] = memory
        if gpu_class is not None:
            requests[gpu_class.resource] = limits[gpu_class.resource] = str(gpus)
        return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}

    def _gpu_class(self, task: Task) -> GpuClass | None:
        if task.devices == 0:
            return None
        if self.resources.gpu_class is None:
            return GpuClass()
        return self.settings.gpu_classes[self.resources.gpu_class]
