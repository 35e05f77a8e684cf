"""A user's own Python files that a study names: read beside the study's file, and from then on part of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podium.trainer.errors import ConfigError, Problem
from podium.trainer.extension_config import with_text


def ship_modules(data: dict[str, Any], source: str) -> None:
    """Put the text of every `extension` that is a file into the study's data, in place.

    `source` is the study's path, or what messages call it where it has none: then files are sought in the working
    directory. Raises ConfigError for files that can't be read.
    """
    study = Path(source).expanduser()
    folder = study.parent if study.is_file() else Path.cwd()
    problems = []
    for where, extension in _extensions(data, ""):
        try:
            extension |= with_text(extension, folder)
        except ConfigError as error:
            problems += [Problem(f"{where}.{problem.where}", problem.what) for problem in error.problems]
    if problems:
        raise ConfigError(problems, source=source)


def _extensions(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, below in node.items():
            place = f"{where}.{name}".lstrip(".")
            if name == "extension" and isinstance(below, dict):
                yield place, below
            else:
                yield from _extensions(below, place)


def shipped(data: Any) -> dict[str, str]:
    """sha256 of every shipped file in a study's resolved data, with its text."""
    found = (extension for _, extension in _extensions(data, ""))
    return {each["sha256"]: each["text"] for each in found if each.get("sha256") and each.get("text")}
