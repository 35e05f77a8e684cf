"""From axes and variants to the variants that the first stage runs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from podium.components.study.fields import value_at, with_overrides
from podium.components.study.groups import possible
from podium.components.study.schema import Axis, Study
from podium.components.verdicts.verdict import VariantRef
from podium.trainer.config import TrainConfig


@dataclass(frozen=True)
class Experiment:
    """A row of an axis's table. The baseline's value of every axis is one and the same variant."""

    axis: str
    value: Any
    name: str
    variant: str


def variants(study: Study) -> list[VariantRef]:
    """The variants of the first stage, the baseline first, then as declared.

    one_at_a_time: each value of each axis that is not the baseline's, and what `variants` lists.
    grid: every combination of the axes' values, and what `variants` lists.
    list: what `variants` lists.
    groups: every configuration that a row of the first stage's groups may turn out to be.
    """
    return [baseline(study), *others(study)]


def baseline(study: Study) -> VariantRef:
    """The variant that others are compared with: the base config, with its own overrides if it is in `variants`."""
    name = study.baseline.variant
    declared = study.variants.get(name)
    overrides = dict(declared.overrides) if declared else {}
    return VariantRef(
        name=name,
        overrides=overrides,
        description=declared.description if declared else "the base config",
        axis_values=_baseline_values(study, overrides),
    )


def others(study: Study) -> Iterator[VariantRef]:
    """Every variant but the baseline."""
    base = baseline(study)
    if study.design == "one_at_a_time":
        for axis_name, axis in study.axes.items():
            for index, value in enumerate(axis.values):
                if value != base.axis_values[axis_name]:
                    yield make(study, base, {axis_name: value}, name=value_name(axis_name, axis, index))
    elif study.design == "grid":
        for indices in itertools.product(*(range(len(axis.values)) for axis in study.axes.values())):
            chosen = {name: study.axes[name].values[i] for name, i in zip(study.axes, indices, strict=True)}
            if chosen != base.axis_values:
                names = [value_name(n, a, i) for (n, a), i in zip(study.axes.items(), indices, strict=True)]
                yield make(study, base, chosen, name="-".join(names))
    elif study.design == "groups":
        for values in possible(study, base.axis_values):
            if values != base.axis_values:
                yield of_values(study, base, values)
    for name, spec in study.variants.items():
        if name != base.name:
            values = {
                axis_name: spec.overrides.get(axis.field, base_value)
                for (axis_name, axis), base_value in zip(study.axes.items(), base.axis_values.values(), strict=True)
            }
            yield VariantRef(
                name=name, overrides=dict(spec.overrides), description=spec.description, axis_values=values
            )


def make(study: Study, base: VariantRef, chosen: Mapping[str, Any], *, name: str) -> VariantRef:
    """The variant that takes these values of these axes, and the baseline's of all others."""
    changed = {axis: value for axis, value in chosen.items() if value != base.axis_values[axis]}
    words = ", ".join(f"{study.axes[axis].title or axis} {value}" for axis, value in changed.items())
    return VariantRef(
        name=name,
        overrides=base.overrides | {study.axes[axis].field: value for axis, value in changed.items()},
        description=words,
        axis_values=base.axis_values | dict(chosen),
    )


def of_values(study: Study, base: VariantRef, values: Mapping[str, Any]) -> VariantRef:
    """The variant with these values of the axes, named by those that are not the baseline's; the baseline itself."""
    if values == base.axis_values:
        return base
    named = [
        value_name(name, axis, axis.values.index(values[name]))
        for name, axis in study.axes.items()
        if values[name] != base.axis_values[name]
    ]
    return make(study, base, values, name="-".join(named))


def value_name(axis_name: str, axis: Axis, index: int) -> str:
    """The name of the variant that takes the axis's value of this index."""
    if axis.names is not None:
        return axis.names[index]
    value = axis.values[index]
    text = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return re.sub(r"[^a-z0-9._-]+", "-", f"{axis_name}-{text}".lower()).strip("-")


def experiments(study: Study) -> list[Experiment]:
    """A row for every value of every axis; several rows share the baseline's trial."""
    base = baseline(study)
    rows = []
    for axis_name, axis in study.axes.items():
        for index, value in enumerate(axis.values):
            name = value_name(axis_name, axis, index)
            variant = base.name if value == base.axis_values[axis_name] else name
            rows.append(Experiment(axis_name, value, name, variant))
    return rows


def axis_key(axis: Axis) -> str:
    """The name under which results carry the axis's value."""
    return axis.key or axis.field.rpartition(".")[2]


def _baseline_values(study: Study, overrides: Mapping[str, Any]) -> dict[str, Any]:
    if not study.axes:
        return {}
    tree = with_overrides({"config": study.config, "data": study.data.model_dump()}, {})
    values: dict[str, Any] = {}
    defaults: TrainConfig | None = None
    for name, axis in study.axes.items():
        if axis.field in overrides:
            values[name] = overrides[axis.field]
            continue
        given = _lookup(tree["data"], axis.field.removeprefix("data.")) if axis.field.startswith("data.") else _MISSING
        if given is _MISSING:
            given = _lookup(tree["config"], axis.field)
        if given is _MISSING:
            defaults = defaults or _with_defaults(study)
            given = value_at(defaults, axis.field)
        values[name] = given
    return values


_MISSING = object()


def _lookup(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return _MISSING
        tree = tree[part]
    return tree


def _with_defaults(study: Study) -> TrainConfig:
    model = {"vocab_size": study.data.vocab_size} | study.config.get("model", {})
    # more steps than anything in a schedule can ask for: the stages have not been heard yet
    return TrainConfig.model_validate(study.config | {"model": model, "max_steps": 10**12})
