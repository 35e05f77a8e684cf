"""The ladder: a study's pipeline. Its graph depends on the stages' names and on nothing else of the study.

    prepare_data → shakedown → if pass:
        train, select of stage 1 → if promote:
            train, select of stage 2 → if promote:
                … evaluate → register → report

Everything else (the study's text, profile, store, budget, GPU counts, node selectors) is a pipeline input, so that
one uploaded pipeline runs an edited study. The shape is the one that was tried on a Kubeflow Pipelines 2.17 backend
and in `kfp.local`: `If` without `Else`, nested, on a step's only `str` output; no loops; no retries, which the backend
ignores; no caching, since what is already done is known by its manifest in the store.

`report` comes last so that it shows the registration too; `select` builds the report after every stage before.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from podium.components.kfp_components import (
    STEPS_IMAGE,
    TRAINER_IMAGE,
    evaluate,
    prepare_data,
    register,
    report,
    select,
    shakedown,
    train,
)
from podium.components.kfp_light import dsl, kubernetes

GPU = "nvidia.com/gpu"
SECRET_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""Keys of the credentials' secret; each is an environment variable of every step, where the secret has it."""
CONFIG_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "PODIUM_MLFLOW_URI", "MLFLOW_TRACKING_URI", "PODIUM_JOBS")
"""Keys of the run-time configuration's ConfigMap; likewise."""
NO_REQUEST = "0"
"""A CPU or memory input that asks for nothing. Kubeflow's driver fails on an empty quantity, and takes "" for GPUs."""

_BUILDING = threading.Lock()
"""KFP keeps the pipeline that is being built in a global variable."""

PipelineFunction = Callable[..., Any]


@dataclass(frozen=True)
class Input:
    """A pipeline input: its type decides the field that the Kubeflow UI shows."""

    name: str
    type: type
    default: Any
    description: str


@dataclass(frozen=True)
class Defaults:
    """Values with which the pipeline runs when nobody changes an input."""

    study: str
    """The study's text, or the URI of a file with it."""
    profile: str = "full"
    store: str = "s3://bucket/prefix"
    budget: str = ""
    launcher: str = "process"
    selection: str = ""
    secret: str = "podium-credentials"  # noqa: S105  a name, not a secret
    config: str = "podium-config"
    priority: str = ""
    gpus: dict[str, int] = field(default_factory=dict)
    """Stage → GPUs of its pod."""
    cpu: dict[str, str] = field(default_factory=dict)
    """Stage → CPU that its pod requests, as Kubernetes writes it (`24`, `500m`)."""
    memory: dict[str, str] = field(default_factory=dict)
    """Stage → memory that its pod requests (`48Gi`)."""
    node_selectors: dict[str, dict[str, str]] = field(default_factory=dict)
    tolerations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gpu_resources: dict[str, str] = field(default_factory=dict)
    """Stage → the resource by which Kubernetes counts its GPUs. Fixed when the pipeline is compiled, as are these:"""
    steps_image: str = STEPS_IMAGE
    trainer_image: str = TRAINER_IMAGE
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    shared_memory: str | None = None
    """Size of /dev/shm, such as `8Gi`; None for what the node allows."""


def build_ladder(name: str, stages: Sequence[str], defaults: Defaults, *, description: str = "") -> Any:
    """The KFP pipeline of a study with these stages, in order.

    Compile it with `kfp.compiler`, or call it under `kfp.local.init` to run it in this process.
    """
    suffixes = input_suffixes(stages)
    inputs = ladder_inputs(stages, suffixes, defaults)
    function = _graph(stages, suffixes, [each.name for each in inputs], defaults)
    function.__name__ = "ladder"
    function.__doc__ = "\n".join(
        [description or f"The study {name}.", "", "Args:", *(f"    {each.name}: {each.description}" for each in inputs)]
    )
    # KFP reads a pipeline's inputs from its function's signature, and how many there are depends on the stages.
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                each.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=each.default, annotation=each.type
            )
            for each in inputs
        ]
    )
    with _BUILDING:
        return dsl.pipeline(name=pipeline_name(name), display_name=name, description=description or None)(function)


def pipeline_name(study_name: str) -> str:
    """The pipeline's name, and the prefix of its pods' names: lower-case letters, digits and dashes."""
    return "podium-" + re.sub(r"[^a-z0-9]+", "-", study_name.lower()).strip("-")


def input_suffixes(stages: Sequence[str]) -> dict[str, str]:
    """Stage → what its inputs' names end with: an identifier, each different (`a-b` and `a.b` would both be `a_b`)."""
    suffixes: dict[str, str] = {}
    for stage in stages:
        plain = re.sub(r"\W", "_", stage)
        suffixes[stage] = plain if plain not in suffixes.values() else f"{plain}_{len(suffixes) + 1}"
    return suffixes


def ladder_inputs(stages: Sequence[str], suffixes: dict[str, str], defaults: Defaults) -> list[Input]:
    """Every input of the pipeline, in the order of the form in the Kubeflow UI."""
    inputs = [
        Input(
            "study", str, defaults.study, "The study as YAML text (edit a seed count and run), or the URI of a file."
        ),
        Input("profile", str, defaults.profile, "Named set of overrides in the study, such as full or smoke."),
        Input("store", str, defaults.store, "Where runs and data lie, s3://bucket/prefix; it holds many runs."),
        Input("budget", str, defaults.budget, "Hard limit in US dollars over all stages; empty for the study's own."),
        Input(
            "launcher",
            str,
            defaults.launcher,
            "How trials start: process (in the step's pod) or job (a Job each; then every GPU count is 0).",
        ),
        Input("selection", str, defaults.selection, "JSON of a part of the study to run; empty for all of it."),
        Input("priority", str, defaults.priority, "PriorityClass of the trials' Jobs; empty for the installation's."),
    ]
    for stage in stages:
        end = suffixes[stage]
        inputs += [
            Input(
                f"gpus_{end}",
                str,
                str(defaults.gpus.get(stage, 0)),
                f"GPUs of the pod that trains stage {stage}: per trial × trials at once, as the study says.",
            ),
            Input(
                f"cpu_{end}",
                str,
                defaults.cpu.get(stage, NO_REQUEST),
                f"CPU that the pod of stage {stage} requests (24, 500m); 0 for none.",
            ),
            Input(
                f"memory_{end}",
                str,
                defaults.memory.get(stage, NO_REQUEST),
                f"Memory that the pod of stage {stage} requests (48Gi); 0 for none.",
            ),
            Input(
                f"node_selector_{end}",
                dict,
                defaults.node_selectors.get(stage, {}),
                f"Node labels that stage {stage} needs, as JSON; an empty object for any node.",
            ),
            Input(
                f"tolerations_{end}",
                list,
                defaults.tolerations.get(stage, []),
                f"Taints that stage {stage} tolerates, as JSON.",
            ),
        ]
    return [
        *inputs,
        Input("secret", str, defaults.secret, "Secret with the store's credentials; it may be missing."),
        Input("config", str, defaults.config, "ConfigMap with S3 endpoint and MLflow address; it may be missing."),
    ]


def _graph(stages: Sequence[str], suffixes: dict[str, str], names: Sequence[str], fixed: Defaults) -> PipelineFunction:
    compiled_gpus = ",".join(f"{stage}={fixed.gpus.get(stage, 0)}" for stage in stages)

    def ladder(*channels: Any) -> None:
        inputs = dict(zip(names, channels, strict=True))

        # Later stages, evaluation and registration are added inside the condition on the stage before.
        def place(task: Any, title: str, *, after: Any = None, image: str = fixed.steps_image) -> Any:
            task.set_caching_options(False).set_display_name(title).set_container_image(image)
            if fixed.image_pull_policy:
                kubernetes.set_image_pull_policy(task, fixed.image_pull_policy)
            if fixed.image_pull_secrets:
                kubernetes.set_image_pull_secrets(task, list(fixed.image_pull_secrets))
            kubernetes.use_secret_as_env(task, inputs["secret"], {key: key for key in SECRET_KEYS}, optional=True)
            kubernetes.use_config_map_as_env(task, inputs["config"], {key: key for key in CONFIG_KEYS}, optional=True)
            return task.after(after) if after is not None else task

        def on_devices(task: Any, title: str, stage: str, *, after: Any = None) -> Any:
            end = suffixes[stage]
            place(task, title, after=after, image=fixed.trainer_image)
            task.set_accelerator_type(fixed.gpu_resources.get(stage, GPU)).set_accelerator_limit(inputs[f"gpus_{end}"])
            task.set_cpu_request(inputs[f"cpu_{end}"]).set_memory_request(inputs[f"memory_{end}"])
            kubernetes.add_node_selector_json(task, inputs[f"node_selector_{end}"])
            kubernetes.add_toleration_json(task, inputs[f"tolerations_{end}"])
            shm = {"medium": "Memory", "size_limit": fixed.shared_memory}
            kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", **shm)  # noqa: S108
            return task

        def pod_of(stage: str) -> dict[str, Any]:
            # What a task's pod asks for must be an argument of the task too: inside an `If` KFP declares only a task's
            # arguments as inputs of the group, and a request that refers to anything else is lost.
            end = suffixes[stage]
            return {
                "launcher": inputs["launcher"],
                "gpus": inputs[f"gpus_{end}"],
                "requests": f"cpu={inputs[f'cpu_{end}']},memory={inputs[f'memory_{end}']}",
                "priority": inputs["priority"],
            }

        prepared = place(
            prepare_data(
                study=inputs["study"],
                profile=inputs["profile"],
                store=inputs["store"],
                budget=inputs["budget"],
                gpus=",".join(f"{stage}={inputs[f'gpus_{suffixes[stage]}']}" for stage in stages),
                compiled_gpus=compiled_gpus,
                launcher=inputs["launcher"],
                selection=inputs["selection"],
                kubeflow_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            ),
            "Prepare data",
        )
        shared = {"run": prepared.output, "store": inputs["store"]}
        gate = on_devices(shakedown(**shared, **pod_of(stages[0])), "Shakedown", stages[0])

        def climb(index: int) -> None:
            stage = stages[index]
            training = on_devices(
                train(**shared, stage=stage, selection=inputs["selection"], **pod_of(stage)), f"{stage}: train", stage
            )
            verdict = place(
                select(**shared, stage=stage, selection=inputs["selection"]), f"{stage}: verdict", after=training
            )
            # Named: `.output` is ambiguous beside artifacts. Bare `If` on it works, since it is the default output.
            with dsl.If(verdict.outputs["Output"] == "promote", name=f"promoted by {stage}"):
                if index + 1 < len(stages):
                    climb(index + 1)
                else:
                    finish()

        def finish() -> None:
            measured = on_devices(evaluate(**shared, **pod_of(stages[-1])), "Evaluate", stages[-1])
            registered = place(register(**shared), "Register", after=measured)
            place(report(**shared), "Report", after=registered)

        with dsl.If(gate.outputs["Output"] == "pass", name="shakedown passed"):
            climb(0)

    return ladder
