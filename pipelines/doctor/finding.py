"""A check and what it found, and how checks are run: all at once, each for so long and no longer, no traceback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]
SECONDS = 30.0


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    status: Status
    found: str
    do: str = ""
    """What to do about it; empty where nothing is to be done."""


Check = Callable[[], Iterator[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]], seconds: float = SECONDS) -> list[Finding]:
    """Run every check at once, and list what they found in their order.

    A check that is not done in time, or that fails in a way of its own, is a finding like any other.
    """
    found: list[list[Finding]] = [[] for _ in checks]
    # daemon threads: a server that never answers must not keep the command from ending
    threads = [
        threading.Thread(target=_run, args=(name, check, found[index]), daemon=True)
        for index, (name, check) in enumerate(checks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    late = [
        [Finding(name, "failed", f"no answer within {seconds:g} s", "look at the network between here and there")]
        if thread.is_alive()
        else []
        for (name, _), thread in zip(checks, threads, strict=True)
    ]
    return [each for done, more in zip(found, late, strict=True) for each in [*done, *more]]


def _run(name: str, check: Check, found: list[Finding]) -> None:
    try:
        # not by `extend`: what a check has found before it hangs is worth showing
        for each in check():
            found.append(each)  # noqa: PERF402
    except Exception as error:  # noqa: BLE001  clients of four servers each raise their own, and the others must go on
        said = (str(error).splitlines() or [type(error).__name__])[0]
        found.append(Finding(name, "failed", said, "see what the message names"))
