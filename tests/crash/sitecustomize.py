"""Kills a process in the middle of a write, once: put on PYTHONPATH of the processes under test, never imported.

CRASH_PATTERN is a part of the path that is written, CRASH_MARKER a file that is made by the one that crashes,
CRASH_AFTER how many such writes (over all processes) go well before, CRASH_ALSO a file with the pid of the process that
dies with it, or empty. The crash comes before the name appears, or right after it.
"""

import os
import random
import signal
from collections.abc import Callable
from typing import Any


def _sabotaged(write: Callable[..., Any], pattern: str, marker: str) -> Callable[..., Any]:
    def crash_or_write(source: Any, target: Any, *rest: Any, **options: Any) -> Any:
        if pattern not in os.fspath(target) or os.path.exists(marker):
            return write(source, target, *rest, **options)
        with open(f"{marker}.count", "a") as count:
            count.write(".")
            seen = count.tell()
        if seen <= int(os.environ["CRASH_AFTER"]):
            return write(source, target, *rest, **options)
        with open(marker, "w") as file:
            file.write(os.fspath(target))
        if random.random() < 0.5:
            write(source, target, *rest, **options)
        if os.environ.get("CRASH_ALSO"):
            with open(os.environ["CRASH_ALSO"]) as file:
                os.kill(int(file.read()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return crash_or_write


if os.environ.get("CRASH_MARKER"):
    for _name in ("replace", "rename", "link"):
        _pattern, _marker = os.environ["CRASH_PATTERN"], os.environ["CRASH_MARKER"]
        setattr(os, _name, _sabotaged(getattr(os, _name), _pattern, _marker))
