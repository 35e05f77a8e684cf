"""Every error that Podium raises on purpose, and every exit code with which one of its processes ends.

    PodiumError
    ├── UserError            the user can mend it; exit code 2; lists every problem with its place
    │   ├── ConfigError      a study or a trainer config that does not validate
    │   ├── DataError        a corpus or a prepared dataset that can't serve
    │   ├── CheckpointError  a checkpoint that does not fit or is damaged beyond its predecessors
    │   └── InUseError       a run or trial that another live process holds
    └── StorageError         the store can't be reached, read or written
        └── NotFoundError    the object is not there

A message says what was allowed and what came: `learning_rate: must be > 0, got -0.1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # pydantic takes 0.08 s to import, which `podium --help` and a trial's first process need not pay
    from pydantic import ValidationError


class ExitCode(IntEnum):
    """Exit codes of every process: the commands, the steps and the trials."""

    CONCLUDED = 0
    """The command did what it was asked; a run has registered its winner."""
    CRASH = 1
    """An error that is not the user's: a bug, or a step that failed."""
    USER_ERROR = 2
    """The input can't be run as it is. Starting the same again would not help."""
    STOPPED = 3
    """A verdict promoted nobody, or `podium verify` found a number that differs."""
    GATE_FAILED = 4
    """The shakedown failed, before any paid stage."""
    INCOMPLETE = 5
    """Not finished, or awaiting approval: run the same command to resume."""
    RUN_AGAIN = 75
    """EX_TEMPFAIL of sysexits.h: saved on request, no failure. Started again it resumes."""
    OVERDUE = 124
    """In place of a task's exit code: it was ended at its deadline."""
    NOT_STARTED = 125
    """In place of a task's exit code: it could not be started at all."""
    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT), or the run was cancelled."""


class PodiumError(Exception):
    """Base of all errors raised on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong, and where: `where` is a dotted field, a file or a flag, empty if it is the whole input."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class UserError(PodiumError):
    """What a user can mend. Carries every problem found, so that nobody has to run twice to see the second one."""

    def __init__(self, problems: str | Problem | Iterable[Problem], *, source: str = "") -> None:
        if isinstance(problems, str):
            problems = [Problem("", problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.source = source
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The problems as text: one line where there is one, else a line each under the source's name."""
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}" if self.source else str(self.problems[0])
        head = f"{len(self.problems)} problems" + (f" in {self.source}" if self.source else "")
        return "\n".join([f"{head}:", *(f"  - {problem}" for problem in self.problems)])


class ConfigError(UserError):
    """A study or a trainer config that does not validate."""

    @classmethod
    def from_validation(cls, error: ValidationError, *, source: str = "", prefix: str = "") -> ConfigError:
        """Turn pydantic's report into ours: dotted place, what was allowed, what came."""
        return cls([_problem(detail, prefix) for detail in error.errors()], source=source)


class DataError(UserError):
    """A corpus or a prepared dataset that can't serve."""


class CheckpointError(UserError):
    """A checkpoint of another format, architecture or mode, or one that is damaged with no good one before it."""


class InUseError(UserError):
    """A run or trial that another live process holds."""


class StorageError(PodiumError):
    """The store can't be reached, read or written. The message names the URI and the server's reason."""


class NotFoundError(StorageError):
    """The object is not in the store."""


def _problem(detail: object, prefix: str) -> Problem:
    assert isinstance(detail, dict)
    # pydantic puts the tag of a discriminated union and the name of a validator into the path: not the user's words
    path = ".".join(str(part) for part in detail["loc"] if not str(part).startswith(("function-", "tagged-union")))
    where = ".".join(part for part in (prefix, path) if part)
    kind, what, came = detail["type"], detail["msg"], detail.get("input")
    if kind == "extra_forbidden":
        return Problem(where, "unknown field")
    if kind == "missing":
        return Problem(where, "required, but missing")
    what = what.removeprefix("Value error, ").removeprefix("Input ")
    if kind == "unknown_kind":
        field = detail["ctx"]["field"]
        return Problem(f"{where}.{field}".lstrip("."), f"{what}, got {_short(_field(came, field))}")
    if kind in ("model_type", "dict_type"):
        what = "must be a mapping of fields"
    elif what.startswith("should be "):
        what = f"must be {what.removeprefix('should be ')}"
    if kind == "value_error" and "got " in what:
        return Problem(where, what)
    return Problem(where, f"{what}, got {_short(came)}")


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, value)


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
