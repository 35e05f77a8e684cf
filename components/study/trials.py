"""From a variant, a stage and a seed to the trainer's config, and from a variant to its dataset."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from podium.components.study.design import baseline, variants
from podium.components.study.fields import is_data_field, with_overrides
from podium.components.study.schema import Study
from podium.components.verdicts.verdict import VariantRef
from podium.trainer.allocation import resolve_config
from podium.trainer.config import TrainConfig
from podium.trainer.data.corpora import CorpusConfig
from podium.trainer.data.prepare import PrepareConfig
from podium.trainer.errors import ConfigError, Problem

SEEDS_PER_STAGE = 10
"""Distance between two stages' first seeds, and so the most seeds that a number can ask for."""


def stage_seeds(study: Study, stage: str) -> list[int]:
    """The seeds of a stage: its list, or base_seed + 10 × stage index + i. Every variant runs the same ones."""
    declared = study.stages[stage].seeds
    if isinstance(declared, list):
        return list(declared)
    first = study.base_seed + SEEDS_PER_STAGE * list(study.stages).index(stage)
    return list(range(first, first + declared))


def variant_config(study: Study, stage: str, variant: VariantRef) -> TrainConfig:
    """What the trainer runs for a variant at a stage, but for the seed: the allocation is solved, nothing is open.

    The base config, under the stage's overrides, under the variant's own; the baseline has no kill rule, since it is
    what the rule compares with. Raises ConfigError naming the variant and the field.
    """
    declared = study.stages[stage]
    overrides = declared.overrides | {k: v for k, v in variant.overrides.items() if not is_data_field(k)}
    tree = with_overrides(study.config, overrides)
    vocab_size = _vocab_size(study, variant)
    model = tree.get("model")
    model = dict(model) if isinstance(model, Mapping) else {}
    if model.setdefault("vocab_size", vocab_size) != vocab_size:
        raise _misfit(stage, variant, [Problem("model.vocab_size", f"must be data.vocab_size = {vocab_size}, "
                                               f"got {model['vocab_size']!r}; leave it out")])  # fmt: skip
    stop = declared.stop.model_copy(update={"kill": None}) if variant.name == study.baseline.variant else declared.stop
    budget = {"max_tokens": declared.budget.tokens, "max_steps": declared.budget.steps}
    try:
        return resolve_config(TrainConfig.model_validate(tree | budget | {"model": model, "stop": stop}))
    except ValidationError as error:
        raise _misfit(stage, variant, ConfigError.from_validation(error).problems) from None
    except ConfigError as error:
        raise _misfit(stage, variant, error.problems) from None


def trial_config(study: Study, stage: str, variant: VariantRef, seed: int) -> TrainConfig:
    """What the trainer runs for one trial. Raises ConfigError naming the variant and the field."""
    return variant_config(study, stage, variant).model_copy(update={"seed": seed})


def gate_stages(study: Study) -> dict[str, str]:
    """What the gate must try before anything is paid: each mode of the baseline (dense, moe), and its first stage."""
    control = baseline(study)
    found: dict[str, str] = {}
    for stage in study.stages:
        found.setdefault(variant_config(study, stage, control).mode, stage)
    return found


def dataset_config(study: Study, variant: VariantRef) -> PrepareConfig:
    """The dataset that a variant is trained on. Raises ConfigError naming the variant and the field."""
    changed = {k.removeprefix("data."): v for k, v in variant.overrides.items() if is_data_field(k)}
    if not changed:
        return PrepareConfig(corpus=study.data.corpus, vocab_size=study.data.vocab_size, tokenizer=study.data.tokenizer)
    tree = with_overrides(study.data.model_dump(), changed)
    try:
        corpus = CorpusConfig.model_validate(tree["corpus"])
        return PrepareConfig(corpus=corpus, vocab_size=tree["vocab_size"], tokenizer=tree["tokenizer"])
    except ValidationError as error:
        prefixed = ConfigError.from_validation(error, prefix="data").problems
        raise ConfigError(Problem(f"variant {variant.name}: {p.where}", p.what) for p in prefixed) from None


def datasets(study: Study) -> dict[str, PrepareConfig]:
    """Every dataset that the study may train on: by variant, and for combinations that a verdict may make."""
    found = {variant.name: dataset_config(study, variant) for variant in variants(study)}
    data_axes = {name: axis for name, axis in study.axes.items() if is_data_field(axis.field)}
    if len(data_axes) > 1:
        base = baseline(study)
        for values in itertools.product(*(axis.values for axis in data_axes.values())):
            overrides = base.overrides | {a.field: v for a, v in zip(data_axes.values(), values, strict=True)}
            name = "-".join(str(value) for value in values)
            found[f"combination {name}"] = dataset_config(study, VariantRef(name=name, overrides=overrides))
    return found


def _vocab_size(study: Study, variant: VariantRef) -> int:
    value: Any = variant.overrides.get("data.vocab_size", study.data.vocab_size)
    assert isinstance(value, int)
    return value


def _misfit(stage: str, variant: VariantRef, problems: Any) -> ConfigError:
    """The trainer's problems, placed at the config's field and naming whose it is."""
    return ConfigError(
        Problem(f"config.{p.where}".rstrip("."), f"{p.what} (variant {variant.name}, stage {stage})") for p in problems
    )
