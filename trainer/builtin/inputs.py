"""What a command line says, as a RunSpec: a config file or preset, single fields changed by flags. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from podium.trainer.builtin.allocation import resolve_config
from podium.trainer.builtin.checks import impossible_rules
from podium.trainer.builtin.config import RunSpec, TrainConfig, load_config, with_text
from podium.trainer.builtin.presets import MOE_PRESETS, PRESETS, Mode, set_mode, set_model
from podium.trainer.trial.errors import ConfigError, NotFoundError, Problem
from podium.trainer.trial.result import CONFIG
from podium.trainer.trial.storage import normalise_uri, open_storage, split_uri
from podium.trainer.trial.yaml_text import parse_yaml

# The flags of `train` that the MoE-emergence study's contract names, as changes of a config. Without torch.

_FIELDS = {
    "block_size": "data.sequence_length",
    "balance_tokens": "data.balance_tokens",
    "max_grad_norm": "max_grad_norm",
    "weight_decay": "optimizer.weight_decay",
    "warmup_fraction": "schedule.warmup_fraction",
    "eval_every": "evaluation.every_steps",
    "save_every": "checkpoint.every_steps",
    "keep_last_k": "checkpoint.keep_last",
    "fit_memory": "batch.fit_memory",
}
_MIXTURE_FIELDS = {
    "num_experts": "model.moe.num_experts",
    "topk": "model.moe.topk",
    "lb_coef": "router.lb_coef",
    "z_coef": "router.z_coef",
    "log_router_every": "router.log_every_steps",
}


@dataclass(frozen=True)
class ContractFlags:
    """As given; None where a flag was not."""

    mode: str | None = None
    model: str | None = None
    size_mb: float | None = None
    block_size: int | None = None
    balance_tokens: bool | None = None
    batch_size: int | None = None
    grad_accum_steps: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    keep_last_k: int | None = None
    weight_decay: float | None = None
    warmup_fraction: float | None = None
    max_grad_norm: float | None = None
    lb_coef: float | None = None
    z_coef: float | None = None
    log_router_every: int | None = None
    num_experts: int | None = None
    topk: int | None = None
    moe_layers: str | None = None
    fit_memory: bool | None = None

    def adjust(self, fields: dict[str, Any], preset: str | None) -> dict[str, Any]:
        """Set mode, model and batch in a config's fields; the other flags as dotted changes.

        Raises ConfigError for flags that the config has no place for.
        """
        self._choose(fields, preset)
        self._set_batch(fields)
        mixture = {field: getattr(self, flag) for flag, field in _MIXTURE_FIELDS.items()}
        mixture["model.moe.layers"] = None if self.moe_layers is None else _layers(self.moe_layers)
        given = [field for field, value in mixture.items() if value is not None]
        if given and not (fields.get("model") or {}).get("moe"):
            flags = {field: f"--{flag.replace('_', '-')}" for flag, field in _MIXTURE_FIELDS.items()}
            wrong = [flags.get(field, "--moe-layers") for field in given]
            raise ConfigError(Problem(flag, "needs a mixture of experts, got a dense model") for flag in wrong)
        return {field: getattr(self, flag) for flag, field in _FIELDS.items()} | mixture

    def _choose(self, fields: dict[str, Any], preset: str | None) -> None:
        if self.mode not in (None, "dense", "moe"):
            raise ConfigError(Problem("--mode", f"must be dense or moe, got {self.mode!r}"))
        if preset in MOE_PRESETS:
            if self.mode is not None:
                set_mode(fields, preset, cast("Mode", self.mode))
            if self.model is not None:
                set_model(fields, self.model)
            return
        named = (("--mode", self.mode), ("--model", self.model), ("--size-mb", self.size_mb))
        wrong = [
            Problem(flag, f"is for --preset {', '.join(MOE_PRESETS)}") for flag, value in named if value is not None
        ]
        if wrong:
            raise ConfigError(wrong)

    def _set_batch(self, fields: dict[str, Any]) -> None:
        if self.batch_size is None and self.grad_accum_steps is None:
            return
        batch = fields.setdefault("batch", {})
        sequences = batch.get("sequences", 1)
        micro = batch.get("micro_batch") or sequences
        steps = self.grad_accum_steps or sequences // micro
        batch["micro_batch"] = self.batch_size or micro
        batch["sequences"] = batch["micro_batch"] * steps


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(
            Problem("--moe-layers", f"must be numbers of blocks such as 8 9 10 11, got {text!r}")
        ) from None


_EITHER = {"max_steps": "max_tokens", "max_tokens": "max_steps"}
"""A flag for one of these takes the place of the other."""


def read_mapping(uri: str) -> dict[str, Any]:
    """A YAML or JSON file at a path or URI, which must hold a mapping. Raises ConfigError."""
    folder, name = split_uri(uri)
    try:
        text = open_storage(folder).read_text(name)
    except NotFoundError:
        raise ConfigError(f"no such config file: {uri}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"must be YAML or JSON text, got {uri}") from None
    try:
        data = json.loads(text) if text.lstrip().startswith("{") and name.endswith(".json") else parse_yaml(text, uri)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error}", source=uri) from None
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"must hold a mapping with fields, got {data!r}", source=uri)
    return data


def read_run_spec(folder_uri: str) -> RunSpec:
    """The RunSpec in a run's folder. Raises ConfigError listing every problem."""
    return parse_run_spec(read_mapping(f"{folder_uri.rstrip('/')}/{CONFIG}"), source=folder_uri)


def parse_run_spec(data: Any, *, source: str) -> RunSpec:
    """Validate a mapping into a RunSpec. Raises ConfigError listing every problem."""
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        raise ConfigError.from_validation(error, source=source) from None


def spec_from_flags(
    config: str | None,
    preset: str | None,
    data: str | None,
    changes: Mapping[str, Any],
    settings: Sequence[str],
    *,
    contract: ContractFlags | None = None,
) -> RunSpec:
    """A RunSpec from `--config` or `--preset`, `--data`, flags (None: not given) and `--set field=value`.

    The config's dimensions are solved. Raises ConfigError for what does not validate and for rules and intervals that
    can never occur.
    """
    if (config is None) == (preset is None):
        raise ConfigError(f"give --config or --preset ({', '.join(PRESETS)})")
    if preset is not None:
        mapping, source = preset_mapping(preset, data), f"preset {preset}"
    else:
        assert config is not None
        mapping, source = read_mapping(config), config
    spec: dict[str, Any] = mapping if {"config", "dataset"} <= mapping.keys() else {"config": mapping}
    fields: dict[str, Any] = spec["config"]
    if contract is not None:
        changes = {**contract.adjust(fields, preset), **{k: v for k, v in changes.items() if v is not None}}
    for name, value in changes.items():
        if value is not None:
            _change(fields, name, value)
            if name in _EITHER:
                fields.pop(_EITHER[name], None)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes field=value, such as optimizer.learning_rate=3e-4, got {setting!r}")
        _change(fields, name.strip(), parse_yaml(text, f"--set {name.strip()}"))
    if data is not None:
        spec["dataset"] = normalise_uri(data)
    if "dataset" not in spec:
        raise ConfigError("--data: required unless --config is a whole RunSpec: the folder of a prepared dataset")
    if isinstance(fields.get("extension"), dict):
        fields["extension"] = with_text(fields["extension"], _folder_of(config))
    resolved = resolve_config(load_config(fields, source=source))
    problems = impossible_rules(resolved)
    if problems:
        raise ConfigError(problems, source=source)
    return parse_run_spec({**spec, "config": resolved.model_dump(mode="json")}, source=source)


def preset_mapping(name: str, data: str | None) -> dict[str, Any]:
    """A preset's fields; its vocabulary is the dataset's. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    mapping: dict[str, Any] = json.loads(json.dumps(PRESETS[name]))  # a copy that may be changed
    if data is not None:
        from podium.trainer.builtin.data.manifest import load_manifest

        mapping["model"].setdefault("vocab_size", load_manifest(open_storage(data)).vocab_size)
    mapping["preset"] = name
    return mapping


def same_training(mine: TrainConfig, theirs: TrainConfig) -> bool:
    """Whether two configs are one run."""
    return mine.model_dump(mode="json") == theirs.model_dump(mode="json")


def _folder_of(config: str | None) -> Path:
    """Where a config's files are sought: beside it, or in the working directory."""
    local = None if config is None else open_storage(split_uri(config)[0]).local_path(split_uri(config)[1])
    return Path.cwd() if local is None else local.parent


def _change(fields: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    place = fields
    for part in path:
        if place.get(part) is None:  # a section that is left out or switched off
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise ConfigError(Problem(name, f"must be a field of a section, but {part} is {place!r}"))
    place[last] = value
