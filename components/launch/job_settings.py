"""How trials run as Jobs on this cluster: what the site decides and no study says.

Read from the environment variable `PODIUM_JOBS`, a YAML mapping (the chart puts it into the ConfigMap `podium-config`),
or from the file that `PODIUM_JOBS_FILE` names. Without either every default holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

import podium
from podium.components.study.schema import Study
from podium.trainer.errors import ConfigError, Problem, UserError
from podium.trainer.section import Section
from podium.trainer.storage import normalise_uri

SETTINGS_VARIABLE = "PODIUM_JOBS"
FILE_VARIABLE = "PODIUM_JOBS_FILE"
PRIORITY_VARIABLE = "PODIUM_PRIORITY_CLASS"
"""Goes over the site's `priority_class`: a pipeline's input."""
TRAINER_IMAGE = f"podium/python-trainer:{podium.__version__}"
"""The same as `kfp_component`'s, without the import of KFP."""


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
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", source=source) from None
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
