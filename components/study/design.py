"""From axes and variants to the variants that the first stage runs."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from podium.components.study.fields import nearest, value_at, with_overrides
from podium.components.study.schema import MAX_SEEDS_BY_COUNT, TIME, Axis, Group, Study
from podium.components.study.verdict import VariantRef
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.errors import Problem, UserError

# Groups of a stage's trials: in which order they run, and which configurations their rows are.
#
# A configuration is a value for every axis. What a group takes from another is only known once that one has run;
# `taken` says it: group → axis → value.

Values = dict[str, Any]
Taken = Mapping[str, Mapping[str, Any]]


def grouped_stage(study: Study) -> str | None:
    """The stage whose trials are given by groups: the first one, or none."""
    return next(iter(study.stages)) if study.design == "groups" else None


def waves(groups: Mapping[str, Group]) -> list[list[str]]:
    """The groups by wave, in their order: each as early as what it waits for lets it. Without those in a circle."""
    found: list[list[str]] = []
    done: set[str] = set()
    while ready := [name for name, group in groups.items() if name not in done and group.waits_for <= done]:
        found.append(ready)
        done.update(ready)
    return found


def configurations(group: Group, base: Mapping[str, Any], taken: Taken) -> list[Values]:
    """The group's rows as values of all axes, over those of the base config and those that are taken."""
    given = {axis: taken[source][axis] for axis, source in group.takes.items()}
    return [{**base, **given, **row} for row in group.rows]


def assumptions(study: Study) -> Iterator[dict[str, dict[str, Any]]]:
    """Everything that may turn out to be taken: group → axis → value, each combination."""
    groups = study.stages[next(iter(study.stages))].groups
    asked = sorted({(source, axis) for group in groups.values() for axis, source in group.takes.items()})
    choices = [_values_in(groups[source], study, axis) for source, axis in asked]
    for values in itertools.product(*choices):
        taken: dict[str, dict[str, Any]] = {}
        for (source, axis), value in zip(asked, values, strict=True):
            taken.setdefault(source, {})[axis] = value
        yield taken


def possible(study: Study, base: Mapping[str, Any]) -> list[Values]:
    """Every configuration that a row may turn out to be, each once, in the rows' order."""
    groups = study.stages[next(iter(study.stages))].groups
    found = []
    for taken in assumptions(study):
        for group in groups.values():
            found += [values for values in configurations(group, base, taken) if values not in found]
    return found


def row_count(study: Study, stage: str) -> int:
    """Trials of all groups together."""
    return sum(len(group.rows) for group in study.stages[stage].groups.values())


def group_problems(study: Study, base: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the groups of a study. `base` has the base config's value of every axis."""
    for index, (name, stage) in enumerate(study.stages.items()):
        if stage.groups and (index or study.design != "groups"):
            yield Problem(f"stages.{name}.groups", "must be of the first stage, in a study with design: groups")
    if study.design != "groups":
        return
    first, stage = next(iter(study.stages.items()))
    where = f"stages.{first}.groups"
    if not stage.groups:
        yield Problem(where, "needs at least one with design: groups, got none")
        return
    if stage.seeds != 1:
        yield Problem(
            f"stages.{first}.seeds", f"must be 1 with groups: rows that repeat are replicates, got {stage.seeds}"
        )
    problems = [problem for name, group in stage.groups.items() for problem in _faults(study, where, name, group)]
    yield from problems
    stuck = [name for name in stage.groups if name not in itertools.chain(*waves(stage.groups))]
    if not problems and stuck:
        yield Problem(f"{where}.{stuck[0]}", f"waits for itself by way of others: {', '.join(stuck)}")
    if problems or stuck:
        return
    for taken in assumptions(study):
        rows = [values for group in stage.groups.values() for values in configurations(group, base, taken)]
        most = max(Counter(map(repr, rows)).values())
        if most > MAX_SEEDS_BY_COUNT:
            yield Problem(where, f"a configuration may be repeated {MAX_SEEDS_BY_COUNT} times at most, got {most} rows")
            return


def _values_in(group: Group, study: Study, axis: str) -> list[Any]:
    """The values of the axis that the group tries, in the axis's order."""
    return [value for value in study.axes[axis].values if any(row.get(axis) == value for row in group.rows)]


def _faults(study: Study, where: str, name: str, group: Group) -> Iterator[Problem]:
    groups = study.stages[next(iter(study.stages))].groups
    for other in sorted(group.waits_for):
        if other not in groups or other == name:
            yield Problem(f"{where}.{name}", f"must wait for another group ({', '.join(groups)}), got {other!r}")
    for axis, source in group.takes.items():
        if axis not in study.axes:
            yield Problem(f"{where}.{name}.takes", f"must be an axis ({', '.join(study.axes)}), got {axis!r}")
        elif source in groups and len(_values_in(groups[source], study, axis)) < 2:
            yield Problem(f"{where}.{name}.takes.{axis}", f"group {source} must try at least two values of it")
        elif source in groups and any(axis not in row for row in groups[source].rows):
            yield Problem(f"{where}.{name}.takes.{axis}", f"every row of group {source} must say its value of it")
    for index, row in enumerate(group.rows):
        for axis, value in row.items():
            place = f"{where}.{name}.rows.{index}.{axis}"
            if axis not in study.axes:
                yield Problem(place, f"must be an axis ({', '.join(study.axes)}), got {axis!r}")
            elif axis in group.takes:
                yield Problem(place, f"is taken from group {group.takes[axis]}, got {value!r} besides")
            elif value not in study.axes[axis].values:
                yield Problem(place, f"must be one of the axis's values {study.axes[axis].values}, got {value!r}")


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


# What a command adds to a study: overrides, which change it and are hashed, and a selection, which is not.


@dataclass(frozen=True)
class Overrides:
    """What the command line changes in a study. It makes another study, so another run."""

    seeds: int | None = None
    """Seeds of every stage; what a stage asks at least (`min_seeds`) goes down to it."""
    gpus: int | None = None
    """GPUs that each stage may use at once: trials in parallel × GPUs of one trial, which has fewer where these are not
    enough for it; 0 is the CPU."""
    data: str | None = None
    """The corpus, as `podium.trainer.builtin.data.corpus.parse_corpus` reads it."""
    budget_usd: float | None = None
    baseline: Literal["run"] | None = None
    """`run`: train the baseline in every stage, whatever figures are recorded or thresholds declared in its place."""


@dataclass(frozen=True)
class Selection:
    """Which part of a study runs now and how. It changes no result, so it is no part of any identity."""

    stages: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    axis: str | None = None
    """Only this axis's variants, and the baseline."""
    parallel: int | None = None
    """Trials at once, instead of the stage's own number."""
    launcher: Literal["process", "job"] = "process"

    @property
    def is_part(self) -> bool:
        """Whether some trials are left out."""
        return self.stages is not None or self.variants is not None or self.axis is not None

    def within(self, stage: str) -> Selection:
        """The selection as a stage sees it: of a stage that is named whole, no trial is left out."""
        named = self.stages is not None and stage in self.stages
        return replace(self, stages=None) if named else self

    def to_json(self) -> str:
        """One line of JSON: how a selection travels through a pipeline's input."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The selection of `to_json`; empty text is everything."""
        if not text.strip():
            return cls()
        data = json.loads(text)
        known = {field.name for field in fields(cls)}
        assert set(data) <= known, data
        for name in ("stages", "variants"):
            if data.get(name) is not None:
                data[name] = tuple(data[name])
        return cls(**data)


def check_selection(study: Study, selection: Selection) -> None:
    """Raise UserError for stages, variants or an axis that the study does not have, all at once."""
    problems = []
    stages = list(study.stages)
    for flag, chosen, known in (
        ("--stages", selection.stages or (), stages),
        ("--axis", (selection.axis,) if selection.axis is not None else (), list(study.axes)),
    ):
        problems += [Problem(flag, _unknown(name, known)) for name in chosen if name not in known]
    if selection.variants is not None:
        names = [ref.name for ref in variants(study)]
        # a later stage's variants are made by a verdict, so their names are not known before
        later = set(selection.stages or stages) <= set(stages[1:])
        problems += [
            Problem("--variants", _unknown(name, names))
            for name in selection.variants
            if name not in names and not later
        ]
    if selection.parallel is not None and selection.parallel < 1:
        problems.append(Problem("--parallel", f"must be 1 or more, got {selection.parallel}"))
    for name, stage in study.stages.items():
        alone = stage.promotion.metric == TIME and not stage.resources.gpus_per_trial and not stage.resources.share_cpu
        if alone and (selection.parallel or 1) > 1 and (selection.stages is None or name in selection.stages):
            words = f"must be 1: stage {name} ranks times, and trials would share the CPU, got {selection.parallel}"
            problems.append(Problem("--parallel", words))
    if problems:
        raise UserError(problems)


def is_selected(study: Study, ref: VariantRef, selection: Selection, base: VariantRef) -> bool:
    """Whether a variant is part of the selection. The baseline always is: the others are compared with it."""
    if ref.name == study.baseline.variant:
        return True
    if selection.variants is not None and ref.name not in selection.variants:
        return False
    if selection.axis is None:
        return True
    return bool(ref.axis_values.get(selection.axis) != base.axis_values.get(selection.axis))


def _unknown(name: str, known: list[str]) -> str:
    return f"the study has no {name!r}{nearest(name, known)}; it has: {', '.join(known) or 'none'}"
