"""What every part of a config is: strict, closed and unchangeable, and how a part with several kinds is told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, Tag

_MARK = "tagged-union:"
"""Marks a tag in pydantic's places, so that `errors` can leave it out of what a user reads."""


class Section(BaseModel):
    """A part of a config: unknown fields are errors, values are never coerced, and it can't be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def kind_tag(kind: str) -> Tag:
    """Marks a member of a union of sections as the one that is meant by `kind`.

    Optimizer = Annotated[
        Annotated[AdamW, kind_tag("adamw")] | Annotated[Muon, kind_tag("muon")], kind_field("name", "adamw", "muon")
    ]
    """
    return Tag(f"{_MARK}{kind}")


def kind_field(field: str, default: str, *others: str) -> Discriminator:
    """Chooses a member of a union by the value of `field`, and `default` where it is left out."""
    return Discriminator(
        _reader(field, default),
        custom_error_type="unknown_kind",
        custom_error_message=f"must be one of {', '.join((default, *others))}",
        custom_error_context={"field": field},
    )


def _reader(field: str, default: str) -> Callable[[Any], str]:
    def kind_of(value: Any) -> str:
        kind = value.get(field, default) if isinstance(value, Mapping) else getattr(value, field, default)
        return f"{_MARK}{kind}"

    return kind_of
