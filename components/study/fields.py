"""The dotted fields that a study's axes and overrides may name, with the type of each.

Two schemas share one namespace: the trainer's TrainConfig, and the study's data (`data.vocab_size`, `data.corpus.*`).
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from podium.components.study.schema import StudyData
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.errors import ConfigError, Problem

RESERVED = {
    "seed": "a stage's seeds",
    "max_steps": "a stage's budget.steps",
    "max_tokens": "a stage's budget.tokens",
    "stop": "a stage's stop",
    "model.vocab_size": "data.vocab_size",
}
"""Fields of the trainer's config that a study sets elsewhere, and where."""


_SHORT = {"lr": "learning_rate", "wd": "weight_decay", "batch_size": "sequences", "seq_len": "sequence_length"}
"""What people call some fields."""


@dataclass(frozen=True)
class FieldType:
    """The declared type of a field. A section is a field too: an override may replace it whole, or set it to null."""

    annotation: Any
    is_section: bool


@cache
def fields_of(model: type[BaseModel]) -> Mapping[str, FieldType]:
    """Every dotted field of a schema, sections included; of a union, the fields of all its members."""
    found: dict[str, FieldType] = {}
    for name, info in model.model_fields.items():
        annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        sections = list(_sections(info.annotation))
        found[name] = FieldType(annotation, bool(sections))
        for section in sections:
            found.update({f"{name}.{inner}": type_ for inner, type_ in fields_of(section).items()})
    return found


@cache
def study_fields() -> Mapping[str, FieldType]:
    """Every field that an axis or an override may name: the trainer's but the reserved ones, and the data's."""
    found = {name: type_ for name, type_ in fields_of(TrainConfig).items() if name.split(".")[0] not in RESERVED}
    del found["model.vocab_size"]
    return found | {f"data.{name}": type_ for name, type_ in fields_of(StudyData).items()}


def is_data_field(path: str) -> bool:
    """Whether a dotted field belongs to the study's data rather than to the trainer's config."""
    return path.startswith("data.") and path.removeprefix("data.") in fields_of(StudyData)


def coerce(path: str, value: Any, where: str) -> Any:
    """A value as the field's type has it (`16k` is 16000 in a count). Raises ConfigError placed at `where`."""
    type_ = study_fields().get(path)
    if type_ is None:
        raise ConfigError(Problem(where, no_such_field(path)))
    if type_.is_section and value is not None:
        return value  # judged with the whole config, where its defaults are
    try:
        return _adapter(path).validate_python(value)
    except ValidationError as error:
        raise ConfigError.from_validation(error, prefix=where) from None


def no_such_field(path: str) -> str:
    """What is wrong with a path that no field has, or that is set elsewhere."""
    for reserved, instead in RESERVED.items():
        if path == reserved or path.startswith(f"{reserved}."):
            return f"a study sets {path} by {instead}"
    return f"no field {path!r} in the config{nearest(path, study_fields())}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` or, with nothing near, the names that are allowed beside it."""
    allowed = list(allowed)
    parent, _, last = name.rpartition(".")
    beside = [path for path in allowed if path.rpartition(".")[0] == parent]
    # in this order: a usual short form, the right name in another section, a slip in the last part or elsewhere
    by_name = {path.rpartition(".")[2]: path for path in beside}
    close = [
        *(by_name[full] for short, full in _SHORT.items() if short == last and full in by_name),
        *(path for path in allowed if path.rpartition(".")[2] == last),
        *(by_name[match] for match in difflib.get_close_matches(last, by_name, n=1, cutoff=0.6)),
        *difflib.get_close_matches(name, [p for p in allowed if p.count(".") == name.count(".")], n=1, cutoff=0.75),
    ]
    if close:
        return f"; did you mean {close[0]!r}?"
    beside = beside or [path for path in allowed if "." not in path]
    return f"; allowed: {', '.join(sorted(path.rpartition('.')[2] for path in beside))}" if beside else ""


def with_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with dotted fields set; the one given stays as it is."""
    result = dict(tree)
    copied: set[str] = set()
    for path, value in overrides.items():
        node, walked = result, ""
        *parents, last = path.split(".")
        for part in parents:
            walked = f"{walked}.{part}"
            if walked not in copied:
                below = node.get(part)
                node[part] = dict(below) if isinstance(below, Mapping) else {}
                copied.add(walked)
            node = node[part]
        node[last] = value
        # a section set whole is the caller's object: copy it before a later override writes into it
        copied = {seen for seen in copied if not f"{seen}.".startswith(f".{path}.")}
    return result


def value_at(model: BaseModel, path: str) -> Any:
    """The value of a dotted field of a validated section; None where a section on the way is null."""
    value: Any = model
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


@cache
def _adapter(path: str) -> TypeAdapter[Any]:
    return TypeAdapter(study_fields()[path].annotation, config=ConfigDict(strict=True))


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    origin = typing.get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif origin is Annotated:
        yield from _sections(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _sections(member)
