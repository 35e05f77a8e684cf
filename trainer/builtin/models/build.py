"""Builds the model of a run: one of the families, or what a user's own module makes.

A module has a function `build_model(config, **options)` (or another, named in the config) that is given the
TrainConfig and returns an `nn.Module` with `forward(idx_BT, targets_BT=None)`: `(logits_BTV, None)`, or `(None, loss)`
with targets. It may subclass what is in `podium.trainer.builtin.models`, and be told each step (`begin_step`,
`after_step` in `podium.trainer.builtin.setup`). Its layers belong into `blocks`, so that optimizers know them. For
example, shipped as `wide.py`:

    from podium.trainer.builtin.models.speedrun import Speedrun

    class Wide(Speedrun): ...

    def build_model(config, **options):
        return Wide(config.model)

A shipped file is written to the user's cache under its sha256 and imported from there; it is run as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from podium.trainer.builtin.config import Extension, TrainConfig, sha256_of_text
from podium.trainer.builtin.data.manifest import default_cache
from podium.trainer.builtin.model_config import ModelConfig
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.result import ParameterCounts


def start_weights(model: nn.Module, config: ModelConfig) -> None:
    """Put the pretrained weights that the config names, if any, into a model of it.

    Raises ConfigError where they can't be had or are of another shape.
    """
    if config.first_weights is not None:
        loads: Any = model
        loads.load_source(config.first_weights)


def build_model(config: ModelConfig) -> nn.Module:
    """A freshly initialised model on the default device; its dimensions must be resolved (else ConfigError).

    `forward(idx_BT, targets_BT=None)` gives `(logits_BTV, None)` or, with targets, `(None, loss)` in nats a token.
    """
    # only the family that is asked for: transformers, for GPT-2, takes seconds to import
    module, name = config.implementation.split(".")
    model: nn.Module = getattr(import_module(f"podium.trainer.builtin.models.{module}"), name)(config)
    return model


def build_run_model(config: TrainConfig) -> nn.Module:
    """A freshly initialised model of a run. Raises ConfigError for an extension that makes none."""
    if config.extension is None:
        return build_model(config.model)
    extension = config.extension
    factory = getattr(_import(extension), extension.factory, None)
    if not callable(factory):
        raise _problem(extension, f"must have a function {extension.factory!r}, got a module without one")
    try:
        made = factory(config, **extension.options)
    except Exception as error:
        raise _problem(extension, f"{extension.factory} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise _problem(extension, f"{extension.factory} must return an nn.Module, got {type(made).__name__}")
    return made


def measured_counts(model: nn.Module) -> ParameterCounts:
    """Trainable parameters of a built model, by the names of its parts; what no name tells is feed-forward."""
    parts = {"embedding": 0, "output": 0, "attention": 0, "norm": 0, "feed_forward": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            known = (part for part in parts if part in name)
            parts["norm" if parameter.ndim < 2 else next(known, "feed_forward")] += parameter.numel()
    return ParameterCounts(total=sum(parts.values()), **parts)


def _import(extension: Extension) -> ModuleType:
    try:
        if extension.text is None:
            return importlib.import_module(extension.module)
        return _import_text(extension.text)
    except Exception as error:
        raise _problem(extension, f"can't be imported: {type(error).__name__}: {error}") from error


def _import_text(text: str) -> ModuleType:
    sha256 = sha256_of_text(text)
    name = f"podium_extension_{sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    # a file, since tracebacks and Triton's kernels read a module's source
    path = default_cache() / "modules" / f"{sha256}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temp.write_text(text, encoding="utf-8")
    temp.replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _problem(extension: Extension, what: str) -> ConfigError:
    return ConfigError(Problem("extension", f"{extension.module}: {what}"))
