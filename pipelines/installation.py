"""What an installation of Podium on a cluster sets for every pipeline: defaults of its inputs, images, GPU classes.

It is one YAML file, which the Helm chart writes and a person can write too:

    store: s3://bucket/experiments
    image_registry: ghcr.io/acme
    gpu_classes:
      l40s: {node_selector: {gpu: l40s}, tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]}

All of it is resolved when a pipeline is compiled: what is compiled says everything that a cluster needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from podium.components.launch.job_manifest import GpuClass
from podium.components.study.schema import Study
from podium.trainer.trial.errors import ConfigError, Problem, UserError
from podium.trainer.trial.section import Section
from podium.trainer.trial.yaml_text import parse_yaml

INSTALLATION = "PODIUM_INSTALLATION"
"""Environment: the installation's file, where none is given."""


class Installation(Section):
    """What an installation sets. Everything is optional; a command's own option goes over it."""

    store: str | None = None
    """Default of the pipelines' store: s3://bucket/prefix."""
    launcher: Literal["process", "job"] = "process"
    secret: str = "podium-credentials"  # noqa: S105  a name, not a secret
    config: str = "podium-config"
    image_registry: str = ""
    """Goes before the images' names: ghcr.io/acme makes ghcr.io/acme/podium/python-steps:<version>."""
    steps_image: str | None = None
    """Full name of the steps' image, over the registry's."""
    trainer_image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: list[str] = []
    shared_memory: str | None = None
    """Size of /dev/shm of what trains, such as 8Gi."""
    gpu_classes: dict[str, GpuClass] = {}
    """What a study calls `gpu_class` → its resource, node selector and tolerations; the same as of PODIUM_JOBS."""


def load_installation(path: str | None = None) -> Installation:
    """The installation's settings: the file at `path`, else the one that the environment names, else none.

    Raises ConfigError that lists every problem, UserError where there is no such file.
    """
    path = path or os.environ.get(INSTALLATION)
    if not path:
        return Installation()
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem("--installation", f"must be a YAML file; {path} can't be read: {error}")) from None
    data = parse_yaml(text, path) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"an installation is a mapping of fields, got {type(data).__name__}", source=path)
    try:
        return Installation.model_validate(data)
    except ValidationError as error:
        raise ConfigError.from_validation(error, source=path) from None


def images(installation: Installation) -> dict[str, Any]:
    """The images of the steps and of what trains, in full: `steps_image` and `trainer_image`."""
    from podium.components.kfp_components import STEPS_IMAGE, TRAINER_IMAGE  # it imports kfp

    prefix = f"{installation.image_registry.rstrip('/')}/" if installation.image_registry else ""
    return {
        "steps_image": installation.steps_image or f"{prefix}{STEPS_IMAGE}",
        "trainer_image": installation.trainer_image or f"{prefix}{TRAINER_IMAGE}",
    }


def placement(study: Study, installation: Installation) -> dict[str, Any]:
    """Where each stage's pod goes, by the stage's GPU class: arguments of `Defaults`, each by stage.

    A class that the installation does not name leaves the pod to the scheduler: any node with that many GPUs.
    """
    found = {
        name: installation.gpu_classes[stage.resources.gpu_class]
        for name, stage in study.stages.items()
        if stage.resources.gpu_class in installation.gpu_classes
    }
    return {
        "gpu_resources": {name: each.resource for name, each in found.items()},
        "node_selectors": {name: each.node_selector for name, each in found.items()},
        "tolerations": {name: each.tolerations for name, each in found.items()},
    }
