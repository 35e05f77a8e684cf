"""The region around the best variants: what all of them share is locked, the rest spans their range with a margin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podium.components.study.fields import coerce, is_data_field, value_at
from podium.components.study.promotion import RefineRegion
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config
from podium.components.verdicts.verdict import VariantRef
from podium.trainer.errors import ConfigError

LEVELS = 5
_DIGITS = 4
"""Significant digits of a level that no unit rounds."""


@dataclass(frozen=True)
class Factor:
    """A field that the design varies."""

    field: str
    numeric: bool
    values: tuple[Any, ...]
    """Numeric: five levels, lowest first. Categorical: the core's low and high level."""
    unit: float | None = None
    log: bool = False

    def at(self, code: int) -> Any:
        """The value of a coded level: -2 to 2, or -1 and 1 of a categorical one."""
        if self.numeric:
            return self.values[code + 2]
        return self.values[int(code > 0)]

    def grid(self, count: int) -> list[Any]:
        """So many levels from the lowest to the highest, evenly spread and all different."""
        if not self.numeric:
            return list(self.values[:count])
        low, high = self._scaled(self.values[0]), self._scaled(self.values[-1])
        spread = [low + (high - low) * i / (count - 1) for i in range(count)]
        whole = all(isinstance(value, int) for value in self.values)
        found = [rounded(math.exp(x) if self.log else x, self.unit, whole=whole) for x in spread]
        return list(dict.fromkeys([self.values[0], *found[1:-1], self.values[-1]]))

    def most(self) -> int:
        """Levels that its range has at most."""
        if not self.numeric:
            return len(self.values)
        if self.unit is None:
            return 10**6
        return 1 + round(float(self.values[-1] - self.values[0]) / self.unit)

    def code_of(self, value: Any) -> float:
        """Where a value lies in coded units."""
        if not self.numeric:
            return 1.0 if value == self.values[1] else -1.0
        low, high = self._scaled(self.values[0]), self._scaled(self.values[-1])
        return 4 * (self._scaled(value) - low) / (high - low) - 2

    def _scaled(self, value: Any) -> float:
        return math.log(value) if self.log else float(value)


@dataclass(frozen=True)
class Region:
    """What the best variants say of every field."""

    locked: dict[str, Any]
    factors: tuple[Factor, ...]
    best: dict[str, Any]
    """The leader's values of the factors."""
    notes: tuple[str, ...]


def region_of(
    study: Study, stage: str, everyone: Sequence[VariantRef], tops: Sequence[VariantRef], policy: RefineRegion
) -> Region:
    """The region of `tops`, the leader first; `everyone` tells which fields the stage varied at all."""
    fields = policy.fields or sorted({field for ref in everyone for field in ref.overrides})
    values = {field: [_value(study, stage, ref, field) for ref in tops] for field in fields}
    locked = {field: found[0] for field, found in values.items() if all(value == found[0] for value in found)}
    notes = []
    factors = []
    for field, found in values.items():
        if field in locked:
            continue
        if is_data_field(field):
            locked[field] = found[0]
            notes.append(f"{field} is locked at the leader's {found[0]!r}: another text or tokenizer does not compare")
            continue
        factor = _numeric(field, found, policy) if all(map(_is_number, found)) else _categorical(field, found, notes)
        if factor is None:
            locked[field] = found[0]
            notes.append(f"{field} is locked at the leader's {found[0]!r}: its range has no five levels")
        else:
            factors.append(factor)
    # those that differ most among the best come first: where not all fit, the last ones are locked
    factors.sort(key=lambda factor: (-len(_distinct(values[factor.field])), factor.field))
    return Region(locked, tuple(factors), {f.field: values[f.field][0] for f in factors}, tuple(notes))


def without_last(region: Region) -> Region:
    """The region with its last factor locked at the leader's value."""
    last = region.factors[-1]
    value = region.best[last.field]
    note = f"{last.field} is locked at the leader's {value!r}: so many factors do not fit"
    best = {field: each for field, each in region.best.items() if field != last.field}
    return Region(region.locked | {last.field: value}, region.factors[:-1], best, (*region.notes, note))


def rounded(value: float, unit: float | None, *, whole: bool) -> float | int:
    """A value on its field's raster, or at four significant digits."""
    if unit is None:
        return float(f"{value:.{_DIGITS}g}")
    on_raster = round(value / unit) * unit
    return round(on_raster) if whole else float(f"{on_raster:.12g}")


def _numeric(field: str, found: Sequence[Any], policy: RefineRegion) -> Factor | None:
    whole = all(isinstance(value, int) for value in found)
    unit = policy.multiple_of.get(field, 1 if whole else None)
    log = field in policy.log and min(found) > 0
    low, high = (math.log(x) if log else float(x) for x in (min(found), max(found)))
    centre, half = (low + high) / 2, (high - low) * (0.5 + policy.margin)
    for _ in range(40):
        levels = _levels(centre, half, unit, log=log, whole=whole)
        if len(_distinct(levels)) == LEVELS and all(_allowed(field, level, policy) for level in levels):
            return Factor(field, True, tuple(levels), unit, log)
        if unit is not None and len(_distinct(levels)) < LEVELS:
            half += unit / 4 if not log else 0.05
        elif not _allowed(field, levels[0], policy) and _allowed(field, levels[-1], policy) and unit is not None:
            centre += unit if not log else 0.05
        elif unit is not None and not log and not _allowed(field, levels[-1], policy) and half < 2.25 * unit:
            centre -= unit
        else:
            half *= 0.85
    return None


def _levels(centre: float, half: float, unit: float | None, *, log: bool, whole: bool) -> list[Any]:
    """Five evenly spaced levels; on a raster symmetric about the middle one, so that no two factors correlate."""
    if unit is None or log:
        scaled = [centre + half * code / 2 for code in (-2, -1, 0, 1, 2)]
        return [rounded(math.exp(x) if log else x, unit, whole=whole) for x in scaled]
    middle = round(centre / unit)
    outer = round(half / unit)
    inner = max(1, round(half / unit / 2))
    steps = (-max(outer, 2), -inner, 0, inner, max(outer, 2))
    return [rounded((middle + step) * unit, unit, whole=whole) for step in steps]


def _categorical(field: str, found: Sequence[Any], notes: list[str]) -> Factor:
    """The leader's value against the one that most of the others have."""
    keys = [repr(value) for value in found]
    by_key = dict(zip(keys, found, strict=True))
    others = Counter(key for key in keys if key != keys[0])
    other = min(others, key=lambda key: (-others[key], keys.index(key)))
    left_out = [by_key[key] for key in others if key != other]
    if left_out:
        notes.append(f"{field}: the design has the levels {found[0]!r} and {by_key[other]!r}, not {left_out!r}")
    return Factor(field, False, (found[0], by_key[other]))


def _allowed(field: str, value: Any, policy: RefineRegion) -> bool:
    low, high = policy.bounds.get(field, (-math.inf, math.inf))
    if not low <= value <= high:
        return False
    try:
        coerce(field, value, field)
    except ConfigError:
        return False
    return True


def _value(study: Study, stage: str, ref: VariantRef, field: str) -> Any:
    if is_data_field(field):
        return ref.overrides.get(field, value_at(study.data, field.removeprefix("data.")))
    return value_at(variant_config(study, stage, ref), field)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distinct(values: Sequence[Any]) -> set[str]:
    return {repr(value) for value in values}


def plain(factors: Sequence[Factor]) -> Mapping[str, list[Any]]:
    """Field → its levels, for the verdict."""
    return {factor.field: list(factor.values) for factor in factors}
