"""A profile: a named set of overrides on a study, merged into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podium.components.study.fields import nearest
from podium.trainer.errors import Problem

FULL = "full"
"""The study as it is written. It need not be declared."""
NAMED = ("axes", "variants", "stages")
"""Mappings by name, in which null removes an entry."""
TAGS = ("policy", "source")
"""Fields that say which kind a section is: another kind replaces it whole."""
ONE_OF = ("budget",)
"""Sections of a stage of which exactly one field is given: replaced whole."""


def apply_profile(data: dict[str, Any], profile: str) -> tuple[dict[str, Any], list[Problem]]:
    """The study's mapping with the profile merged in and the profiles taken out, and what is wrong with them."""
    data = dict(data)
    profiles = data.pop("profiles", None) or {}
    if not profiles and profile in (FULL, data.get("profile")):
        return {"profile": FULL} | data, []  # as it is written, or one that is resolved already and says so
    data["profile"] = profile
    if not isinstance(profiles, Mapping):
        return data, [Problem("profiles", f"must be a mapping of names to overrides, got {profiles!r}")]
    problems = [
        Problem(f"profiles.{name}", f"must be a mapping of overrides, got {overrides!r}")
        for name, overrides in profiles.items()
        if not isinstance(overrides, Mapping)
    ]
    if profile not in profiles and profile != FULL:
        names = [FULL, *(name for name in profiles if name != FULL)]
        problems.append(Problem("--profile", f"no profile {profile!r}{nearest(profile, names)}; the study has: "
                                             f"{', '.join(names)}"))  # fmt: skip
    overrides = profiles.get(profile, {})
    if not isinstance(overrides, Mapping):
        return data, problems
    unknown = [
        Problem(f"profiles.{profile}.{section}.{name}", f"removes {name!r}, which the study does not have")
        for section in NAMED
        for name, value in (overrides.get(section) or {}).items()
        if value is None and name not in (data.get(section) or {})
    ]
    return _merge(data, overrides, path=()), problems + unknown


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if value is None and path and path[-1] in NAMED and len(path) == 1:
            merged.pop(key, None)
        elif not isinstance(value, Mapping) or not isinstance(below, Mapping) or _replaces(key, below, value, path):
            merged[key] = dict(value) if isinstance(value, Mapping) else value
        else:
            merged[key] = _merge(below, value, (*path, key))
    return merged


def _replaces(key: str, below: Mapping[str, Any], value: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    other_kind = any(tag in value and tag in below and value[tag] != below[tag] for tag in TAGS)
    # dotted overrides are a flat mapping of fields: they merge field by field, as they stand
    return other_kind or (key in ONE_OF and len(path) == 2 and path[0] == "stages")
