"""Validate a study's mapping: the schema's problems and those of meaning, all in one go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from podium.components.study.checks import NAME_RULE, check_study
from podium.components.study.fields import RESERVED, coerce, fields_of, nearest
from podium.components.study.group import Group
from podium.components.study.promotion import Policy, Promotion
from podium.components.study.schema import Axis, Baseline, Stage, Study, VariantSpec
from podium.trainer.config import TrainConfig
from podium.trainer.errors import ConfigError, Problem

MOST_SHOWN = 40
"""Problems that one message lists; the rest is counted."""

_ENTRIES: dict[str, type[BaseModel]] = {"stages": Stage, "axes": Axis, "variants": VariantSpec}
_POLICIES: tuple[type[Policy], ...] = get_args(get_args(Promotion)[0])
_UNION = re.compile(r"\.(?:int|list\[int\])(?:\.\d+)?$")
"""What pydantic appends to the place of a field that is a number or a list."""


def _policy_name(policy: type[Policy]) -> str:
    name: str = policy.model_fields["policy"].default
    return name


_TAGS = re.compile(r"\.promotion\.(?:" + "|".join(map(_policy_name, _POLICIES)) + r")\b")


def validate(data: Mapping[str, Any], *, source: str, problems: Iterable[Problem] = ()) -> Study:
    """The study, its values in their fields' types. Raises ConfigError with `problems` and all that is found."""
    found = list(problems)
    study, schema_problems = _parse(data)
    found += schema_problems
    if study is None:
        found += _config_problems(data.get("config"), data)
    else:
        study, more = _normalise(study, data)
        found += more or check_study(study)
    # a part that had to be left out to go on may be missed by the checks of meaning: its own problem is enough
    places = {problem.where for problem in schema_problems}
    found = [p for p in dict.fromkeys(found) if p in schema_problems or p.where not in places]
    if found or study is None:
        shown = found[:MOST_SHOWN]
        if len(found) > MOST_SHOWN:
            shown.append(Problem("", f"and {len(found) - MOST_SHOWN} more"))
        raise ConfigError(shown, source=source)
    return study


def _parse(data: Mapping[str, Any]) -> tuple[Study | None, list[Problem]]:
    """The study, or what is left of it without its faulty parts, and what is wrong with them."""
    problems: list[Problem] = []
    for _ in range(4):
        try:
            return Study.model_validate(data), problems
        except ValidationError as error:
            if not problems:
                told = zip(ConfigError.from_validation(error).problems, error.errors(), strict=True)
                # a field that may be two things is reported once for each: once is enough
                problems = list({p.where: p for p in (_in_words(p, d) for p, d in told)}.values())
            rest = data
            for detail in error.errors():
                rest = _without(rest, detail["loc"], missing=detail["type"] == "missing")
            # with a stand-in for a faulty name the rest can still be judged
            data = {"name": "study", "question": "-", **rest}
    return None, problems


def _in_words(problem: Problem, detail: Any) -> Problem:
    where = _UNION.sub("", _TAGS.sub(".promotion", problem.where))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        policies = ", ".join(_policy_name(policy) for policy in _POLICIES)
        return Problem(f"{where}.policy", f"must be one of {policies}, got {detail['input'].get('policy')!r}")
    if where != problem.where and where.endswith(".seeds"):
        value = detail["input"]
        return Problem(where, f"must be a number of seeds or a list of seeds, got {value!r}")
    if detail["type"] == "string_pattern_mismatch":
        return Problem(where, f"{NAME_RULE}, got {detail['input']!r}")
    if detail["type"] == "too_short":
        return Problem(where, f"needs at least one, got {detail['input']!r}")
    if detail["type"] != "extra_forbidden":
        return Problem(where, problem.what)
    parts = where.split(".")
    if parts[0] in _ENTRIES and len(parts) > 2:
        allowed, name = fields_of(_ENTRIES[parts[0]]), ".".join(parts[2:])
        if parts[0] == "stages" and parts[2] == "promotion":
            allowed, name = {f: t for policy in _POLICIES for f, t in fields_of(policy).items()}, ".".join(parts[3:])
    elif parts[0] == "baseline":
        allowed, name = fields_of(Baseline), ".".join(parts[1:])
    else:
        allowed, name = fields_of(Study), where
    return Problem(where, f"unknown field{nearest(name, allowed)}")


def _without(data: Mapping[str, Any], loc: tuple[int | str, ...], *, missing: bool) -> dict[str, Any]:
    """The mapping without what is at `loc`, or without the named entry around it where that can't be."""
    path = [part for part in loc if isinstance(part, str) and not part.startswith("function-")]
    if missing:
        path = path[:2] if path and path[0] in _ENTRIES else path[:1]
    result = dict(data)
    node, parts = result, list(path)
    while len(parts) > 1:
        below = node.get(parts[0])
        if parts[0] not in node:  # the tag of a union
            parts.pop(0)
        elif isinstance(below, Mapping) and any(part in below for part in parts[1:]):
            node[parts[0]] = node = dict(below)
            parts.pop(0)
        else:
            break
    node.pop(parts[0] if parts else "", None)
    return result


def _normalise(study: Study, data: Mapping[str, Any]) -> tuple[Study, list[Problem]]:
    """The same study with the values of axes and overrides, and the base config, in the types of their fields."""
    problems = _config_problems(study.config, data)
    axes, variants, stages = {}, {}, {}
    for name, axis in study.axes.items():
        values = []
        for index, value in enumerate(axis.values):
            where = f"axes.{name}.values.{index}"
            try:
                values.append(coerce(axis.field, value, where))
            except ConfigError as error:
                unknown = [Problem(f"axes.{name}.field", p.what) for p in error.problems if p.where == where]
                problems += unknown if _is_unknown(axis.field) else error.problems
        axes[name] = axis.model_copy(update={"values": values})
    for name, variant in study.variants.items():
        overrides, more = _coerce_all(variant.overrides, f"variants.{name}.overrides")
        variants[name] = variant.model_copy(update={"overrides": overrides})
        problems += more
    for name, stage in study.stages.items():
        overrides, more = _coerce_all(stage.overrides, f"stages.{name}.overrides")
        groups, faults = _coerce_groups(stage.groups, axes, f"stages.{name}.groups")
        stages[name] = stage.model_copy(update={"overrides": overrides, "groups": groups})
        problems += more + faults
    update: dict[str, Any] = {"axes": axes, "variants": variants, "stages": stages}
    if not problems:
        update["config"] = _plain_config(study.config, study.data.vocab_size)
    return study.model_copy(update=update), problems


def _coerce_groups(
    groups: Mapping[str, Group], axes: Mapping[str, Axis], where: str
) -> tuple[dict[str, Group], list[Problem]]:
    """The groups with the values of their rows in the types of the axes' fields."""
    result: dict[str, Group] = {}
    problems: list[Problem] = []
    for name, group in groups.items():
        rows = []
        for index, row in enumerate(group.rows):
            known = {}
            for axis, value in row.items():
                known[axis] = value
                if axis not in axes or _is_unknown(axes[axis].field):
                    continue  # said elsewhere
                try:
                    known[axis] = coerce(axes[axis].field, value, f"{where}.{name}.rows.{index}.{axis}")
                except ConfigError as error:
                    problems += error.problems
            rows.append(known)
        result[name] = group.model_copy(update={"rows": rows})
    return result, problems


def _is_unknown(field: str) -> bool:
    try:
        coerce(field, None, "")
    except ConfigError as error:
        return not error.problems[0].where and error.problems[0].what.startswith(("no field", "a study sets"))
    return False


def _coerce_all(overrides: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    result: dict[str, Any] = {}
    problems: list[Problem] = []
    for field, value in overrides.items():
        try:
            result[field] = coerce(field, value, f"{where}.{field}")
        except ConfigError as error:
            problems += error.problems
    return result, problems


def _config_problems(config: Any, data: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the base config by itself."""
    if not isinstance(config, Mapping):
        return []  # the schema says so
    problems = [Problem(f"config.{name}", f"a study sets this by {instead}; leave it out")
                for name, instead in RESERVED.items() if name in config]  # fmt: skip
    section = data.get("data")
    vocab_size = section.get("vocab_size") if isinstance(section, Mapping) else None
    try:
        _base_config({k: v for k, v in config.items() if k not in RESERVED}, vocab_size)
    except ValidationError as error:
        for problem, detail in zip(ConfigError.from_validation(error).problems, error.errors(), strict=True):
            if problem.where == "model.vocab_size":
                continue  # it comes from data.vocab_size, which the schema judges
            unknown = detail["type"] == "extra_forbidden"
            what = f"unknown field{nearest(problem.where, fields_of(TrainConfig))}" if unknown else problem.what
            problems.append(Problem(f"config.{problem.where}".rstrip("."), what))
    return problems


def _base_config(config: Mapping[str, Any], vocab_size: Any) -> TrainConfig:
    model = config.get("model")
    if isinstance(model, Mapping) and "vocab_size" not in model:
        config = {**config, "model": {**model, "vocab_size": vocab_size}}
    # enough steps for any batch: a stage's budget is checked with the stage
    return TrainConfig.model_validate({**config, "max_steps": 10**12})


def _plain_config(config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The fields that the study gives, in their types: `10M` and 10000000 are one study."""
    plain = _base_config(config, vocab_size).model_dump(mode="json", exclude_unset=True)
    del plain["max_steps"]
    if "vocab_size" not in config["model"]:
        del plain["model"]["vocab_size"]
    return plain
