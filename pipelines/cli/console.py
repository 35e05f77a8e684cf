"""Where output goes and what an exit code means: results on stdout, everything that accompanies them on stderr."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Exit(IntEnum):
    """Exit codes of every command."""

    CONCLUDED = 0
    USER_ERROR = 2
    STOPPED = 3
    GATE_FAILED = 4
    INCOMPLETE = 5
    INTERRUPTED = 130


OF_STATE = {
    "succeeded": Exit.CONCLUDED,
    "stopped": Exit.STOPPED,
    "gate_failed": Exit.GATE_FAILED,
    "incomplete": Exit.INCOMPLETE,
    "awaiting_approval": Exit.INCOMPLETE,
    "running": Exit.INCOMPLETE,
    "cancelled": Exit.INTERRUPTED,
}
"""A run's state → the exit code of `podium run`."""


def stdout() -> Console:
    """The console for results. Made at the call, so that it follows a redirected sys.stdout."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console for progress and errors."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    # Tables are wide and a pipe has no width: 80 columns would cut names that someone wants to grep for.
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False)


def say(text: str) -> None:
    """One plain line on stderr."""
    print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """One plain line on stdout, never wrapped or styled: what a script reads."""
    print(text, flush=True)


def result_json(value: Any) -> None:
    """The one object that `--json` promises on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)
