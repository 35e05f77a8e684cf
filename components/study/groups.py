"""Groups of a stage's trials: in which order they run, and which configurations their rows are.

A configuration is a value for every axis. What a group takes from another is only known once that one has run; `taken`
says it: group → axis → value.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from podium.components.study.group import Group
from podium.components.study.schema import MAX_SEEDS_BY_COUNT, Study
from podium.trainer.errors import Problem

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
