"""A task as a `batch/v1` Job: the whole of what Podium asks a cluster for.

Pods satisfy Pod Security `restricted` and write to two places only, /tmp and /dev/shm. A Job makes one attempt
(backoffLimit 0, no policy that starts pods again): the conductor sees how it ended and makes the next one, so that what
counts as a failure is decided in one place, and an attempt is the same thing whatever starts it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

import podium
from podium.components.launch.launcher import ATTEMPT_VARIABLE, Task
from podium.components.study.schema import Resources, Study
from podium.trainer.trial.errors import ConfigError, ExitCode, Problem, UserError
from podium.trainer.trial.section import Section
from podium.trainer.trial.storage import join_uri, normalise_uri
from podium.trainer.trial.yaml_text import parse_yaml

# Names and labels of what a run has on a cluster: the same for every conductor of the run, different for every other.
#
# A Job's name is made of the store, the run, the trial's fingerprint and the attempt, so that a conductor that was
# killed and started again finds its Jobs and can't start one twice: creating it again is a conflict.

APP = {"app.kubernetes.io/name": "podium", "app.kubernetes.io/component": "trial"}
RUN, STAGE, STORE = "podium.dev/run", "podium.dev/stage", "podium.dev/store"
TASK = "podium.dev/task"
"""Annotation: the task's name in full, `ranking/emb25/seed-42`."""
RUN_URI = "podium.dev/run-uri"
"""Annotation: where the run lies, so that its lease can be watched by who knows only its Jobs."""
FOLDER = "podium.dev/folder"
"""Annotation: the URI of the trial's folder."""
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label that the Job controller puts on a Job's pods."""


@dataclass(frozen=True)
class RunOnCluster:
    """Which run, and which of its steps, some Jobs belong to."""

    store_uri: str
    run_id: str
    run_uri: str
    incarnation: str
    """Changes when a run's folder is removed and made again: Jobs of the former are not the latter's."""
    stage: str

    @property
    def selector(self) -> str:
        """Label selector of the step's Jobs, and of their pods."""
        return ",".join(f"{key}={value}" for key, value in self.labels.items())

    @property
    def labels(self) -> dict[str, str]:
        """The labels that all of the step's Jobs have."""
        return {**run_labels(self.store_uri, self.run_id), STAGE: label(self.stage)}

    def stem(self, task: Task) -> str:
        """A Job's name without the attempt, at most 46 characters."""
        parts = [self.store_uri, self.incarnation, self.run_id, self.stage, task.name, task.identity]
        readable = re.sub(r"[^a-z0-9]+", "-", task.name.lower().replace("/seed-", "-")).strip("-")
        return f"podium-{readable[:25].rstrip('-')}-{_hex(*parts, digits=12)}"

    def job_name(self, task: Task) -> str:
        """The name of the Job that makes this attempt at the task: a DNS label with room for a rank's index."""
        return f"{self.stem(task)}-{task.attempt}"


def run_labels(store_uri: str, run_id: str) -> dict[str, str]:
    """The labels that all Jobs of a run have."""
    return {**APP, RUN: label(run_id), STORE: _hex(store_uri, digits=8)}


def label(text: str) -> str:
    """A text as a label's value: at most 63 characters; what had to be changed keeps its difference by a hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    if plain == text and len(text) <= 63:
        return text
    return f"{plain[:54].rstrip('-._')}-{_hex(text, digits=8)}".lstrip("-")


def _hex(*parts: str, digits: int) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:digits]


# How trials run as Jobs on this cluster: what the site decides and no study says.
#
# Read from the environment variable `PODIUM_JOBS`, a YAML mapping (the chart puts it into the ConfigMap
# `podium-config`), or from the file that `PODIUM_JOBS_FILE` names. Without either every default holds.

SETTINGS_VARIABLE = "PODIUM_JOBS"
FILE_VARIABLE = "PODIUM_JOBS_FILE"
PRIORITY_VARIABLE = "PODIUM_PRIORITY_CLASS"
"""Goes over the site's `priority_class`: a pipeline's input."""
TRAINER_IMAGE = f"podium/python-trainer:{podium.__version__}"
"""The same as `kfp_components`', without the import of KFP."""


def _quantity(text: str) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", text):
        raise ValueError(f"must be a Kubernetes quantity such as 500m, 8Gi or 2, got {text!r}")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text):
        raise ValueError(f"must be a Kubernetes name (lower-case letters, digits, - and .), got {text!r}")
    return text


Quantity = Annotated[str, AfterValidator(_quantity)]
Name = Annotated[str, AfterValidator(_name)]


class GpuClass(Section):
    """What a study's `gpu_class` means on this cluster."""

    resource: str = "nvidia.com/gpu"
    """The extended resource that a GPU of this class is counted in."""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []


class JobSettings(Section):
    """The site's side of a trial's Job; the stage's side is its `resources`."""

    namespace: Name | None = None
    """Where the Jobs run: by default the conductor's own namespace, or that of the kubeconfig's context."""
    image: str = Field(default=TRAINER_IMAGE, min_length=1)
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: list[Name] = []
    service_account: Name | None = None
    """None is the namespace's `default`. No token of it is mounted either way: a trial has no business with the API."""
    secret: Name | None = "podium-credentials"  # noqa: S105  a name, not a secret
    """Secret whose keys are environment variables of a trial. One that is stated must exist; the default need not."""
    config_map: Name | None = "podium-config"
    """ConfigMap whose keys are environment variables of a trial; likewise."""
    env: dict[str, str] = {}
    """More environment variables, nothing secret."""
    gpu_classes: dict[str, GpuClass] = {}
    queue: Name | None = None
    """Kueue LocalQueue. Jobs are then created suspended, and Kueue lets them go."""
    priority_class: Name | None = None
    parallel: int | None = Field(default=None, gt=0)
    """The most Jobs of a stage at once, whatever the study or `--parallel` say."""
    shared_memory: Quantity = "8Gi"
    """Limit of /dev/shm. What is used of it counts as the trial's memory."""
    scratch: Quantity = "20Gi"
    """Limit of /tmp, the only other place that a trial can write to."""
    cpu: Quantity | None = None
    """CPU request of a trial whose stage names none."""
    memory: Quantity | None = None
    """Memory request and limit of a trial whose stage names none."""
    ttl_seconds: int = Field(default=3600, ge=0)
    """How long an ended Job and its pod's Kubernetes log stay."""
    deadline_seconds: int | None = Field(default=None, gt=0)
    """A Job that runs longer is ended; its trial saves, which counts as a failed attempt."""
    grace_seconds: int = Field(default=120, ge=10)
    """Time for a trial to save when its pod is told to end."""
    start_seconds: float = Field(default=600, gt=0)
    """How long a pod may fail to start for what waiting does not mend (image, secret): then its attempt ends."""
    patience_seconds: float = Field(default=600, gt=0)
    """A trial that sees its conductor's counter stand still for so long saves and ends."""
    check_sources: bool = True
    """Refuse to train in an image whose trainer is other than the conductor's, which the fingerprint was made from."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @property
    def secret_required(self) -> bool:
        """Whether a missing Secret keeps trials from starting."""
        return "secret" in self.model_fields_set

    @property
    def config_map_required(self) -> bool:
        """Whether a missing ConfigMap keeps trials from starting."""
        return "config_map" in self.model_fields_set


def read_job_settings(environment: Mapping[str, str] = os.environ) -> JobSettings:
    """The settings that the environment names. Raises ConfigError with every problem, naming variable or file."""
    text, source = environment.get(SETTINGS_VARIABLE, ""), SETTINGS_VARIABLE
    path = environment.get(FILE_VARIABLE)
    if not text.strip() and path:
        source = path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(Problem(FILE_VARIABLE, f"{path!r} can't be read: {error.strerror}")) from None
    data = parse_yaml(text, source) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"must be a mapping of settings, got {data!r}", source=source)
    if priority := environment.get(PRIORITY_VARIABLE):
        data = {**data, "priority_class": priority}
    try:
        return JobSettings.model_validate(data)
    except ValidationError as error:
        raise ConfigError.from_validation(error, source=source) from None


def check_jobs(study: Study, store_uri: str) -> JobSettings:
    """The settings, checked against what a study asks for and where it is kept.

    Raises UserError with everything that would keep a trial from running as a Job on this site.
    """
    settings = read_job_settings()
    problems = []
    if not normalise_uri(store_uri).startswith("s3://"):
        what = f"must be s3://bucket/prefix with launcher job, since pods can't reach a folder, got {store_uri}"
        problems.append(Problem("--store", what))
    for name, stage in study.stages.items():
        wanted, known = stage.resources.gpu_class, settings.gpu_classes
        if stage.resources.gpus_per_trial and wanted is not None and wanted not in known:
            what = f"must be a class that {SETTINGS_VARIABLE} names under gpu_classes ({', '.join(known) or 'none'})"
            problems.append(Problem(f"stages.{name}.resources.gpu_class", f"{what}, got {wanted!r}"))
    if problems:
        raise UserError(problems)
    return settings


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
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [ExitCode.USER_ERROR]},
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
