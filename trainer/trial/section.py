"""The parts of a config: strict, closed and immutable sections, unions of kinds, and quantities with units."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Tag

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


# Numbers as people write them: `5M` tokens, `2h`, `$95`; parsed once, then plain numbers with the unit in the name.

_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_count(value: Any) -> Any:
    """`5M`, `1_000` or `2.5e6` as a whole number; anything but text is passed on for pydantic to judge.

    Raises ValueError for text that is not a whole number of things.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgGtT]?)\s*", value)
    number = float(match[1].replace("_", "")) * _COUNT[match[2].lower()] if match else 0.5
    if not number.is_integer():
        raise ValueError(f"must be a whole number such as 5000, 5k, 10M or 2.5B, got {value!r}")
    return int(number)


def parse_seconds(value: Any) -> Any:
    """`90`, `90s`, `10min`, `2h` or `1d` as seconds. Raises ValueError for other text."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([a-z]*)\s*", value.lower())
    if not match or match[2] not in _SECONDS:
        raise ValueError(f"must be a time such as 90s, 10min, 2h or 1d, got {value!r}")
    return float(match[1]) * _SECONDS[match[2]]


def parse_usd(value: Any) -> Any:
    """`$95`, `95` or `1200.50` as US dollars. Raises ValueError for other text.

    A comma is refused: `1,5` is 1.50 to some readers and 15 to others.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(-?)\s*\$?\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(?:usd)?\s*", value.lower())
    if not match:
        comma = "; write no commas, 1,5 could be 1.5 or 15" if "," in value else ""
        raise ValueError(f"must be an amount such as 95, $95 or 1200.50, got {value!r}{comma}")
    return float(match[1] + match[2].replace("_", ""))


Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number of tokens, steps, parameters."""
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
"""A length of time in seconds."""
Usd = Annotated[float, BeforeValidator(parse_usd)]
"""An amount of US dollars."""


def format_count(number: float) -> str:
    """`5_000_000` as `5M`: three significant digits."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def format_seconds(seconds: float) -> str:
    """`4210` as `1h10m`."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def format_usd(usd: float) -> str:
    """`16.0` as `$16.00`, and less than a cent as `<$0.01`."""
    if 0 < usd < 0.005:
        return "<$0.01"
    return f"${usd:,.2f}"
