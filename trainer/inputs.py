"""What a command line says, as a RunSpec: a config file or preset, single fields changed by flags. Without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from podium.trainer.allocation import resolve_config
from podium.trainer.config import RunSpec, TrainConfig, load_config
from podium.trainer.contract_flags import ContractFlags
from podium.trainer.errors import ConfigError, NotFoundError, Problem
from podium.trainer.extension_config import with_text
from podium.trainer.presets import PRESETS
from podium.trainer.stop_checks import impossible_rules
from podium.trainer.storage import normalise_uri, open_storage, split_uri

CONFIG = "config.json"

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
        # JSON is not quite YAML: 1e-06 is a number in one and text in the other
        data = json.loads(text) if text.lstrip().startswith("{") and name.endswith(".json") else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error}", source=uri) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}", source=uri) from None
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
        _change(fields, name.strip(), _value(text))
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
        from podium.trainer.data.manifest import load_manifest

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


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 3e-4 as text
        except ValueError:
            return value
    return value


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
