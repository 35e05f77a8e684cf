"""What became of every test over several pytest runs: passed, failed, or not run, and then why.

As a plugin (`-p tests.outcomes`) it appends a line to the file that PODIUM_TEST_OUTCOMES names as soon as something is
known, so that a run which is cut off has told all but its last test; `python tests/outcomes.py FILE` sums a file up.
It also begins nothing once PODIUM_TESTS_UNTIL is over (seconds of the clock) and runs `core` tests first, the others
from another quarter on with each commit: what the time of one run leaves out, one of the next three begins with.
PODIUM_TESTS_QUARTERS (`0`, `123`) leaves out the other quarters; PODIUM_TESTS_ONLY names a file of the tests that a
second attempt is for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FILE, UNTIL = "PODIUM_TEST_OUTCOMES", "PODIUM_TESTS_UNTIL"
QUARTERS, ONLY = "PODIUM_TESTS_QUARTERS", "PODIUM_TESTS_ONLY"
TURNS = 4
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
WEIGHT = {PASSED: 0, NOT_RUN: 1, FAILED: 2}
"""Of a test's set-up, call and teardown the heaviest is what it counts for."""


@dataclass
class Tally:
    """The outcomes of a file's tests."""

    last: dict[str, str] = field(default_factory=dict)
    """Test → outcome. A failure stays one until a later run of the same test passes."""
    failed_before: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    """Of what was not run."""

    def of(self, outcome: str) -> list[str]:
        """The tests with this outcome."""
        return sorted(test for test, last in self.last.items() if last == outcome)

    @property
    def passed_again(self) -> list[str]:
        """What failed at first."""
        return sorted(test for test in self.failed_before if self.last[test] == PASSED)

    def lines(self) -> Iterator[str]:
        """All but what simply passed by name; the figures last."""
        yield "=== what became of each test"
        for test in self.of(NOT_RUN):
            yield f"NOT RUN {test}: {self.reasons.get(test) or 'its run was cut off'}"
        for test in self.passed_again:
            yield f"PASSED ONLY IN THE SECOND ATTEMPT {test}"
        for test in self.of(FAILED):
            yield f"FAILED {test}"
        yield ", ".join(f"{len(self.of(outcome))} {outcome}" for outcome in (PASSED, FAILED, NOT_RUN))


def tally(lines: Iterable[str]) -> Tally:
    """Fold a file's lines, oldest first."""
    found, this_run = Tally(), dict[str, str]()
    for line in lines:
        event = json.loads(line)
        if event["kind"] == "begin":
            this_run = {}
        elif event["kind"] == "collected":
            for test in event["tests"]:
                found.last.setdefault(test, NOT_RUN)
        else:
            test, outcome = event["test"], event["outcome"]
            this_run[test] = max(this_run.get(test, outcome), outcome, key=WEIGHT.__getitem__)
            if this_run[test] == FAILED:
                found.failed_before.add(test)
            if this_run[test] == NOT_RUN:
                found.reasons[test] = event["why"]
                found.last.setdefault(test, NOT_RUN)
            else:
                found.last[test] = this_run[test]
    return found


def is_over() -> bool:
    """Whether the time of the whole run is up."""
    return time.time() > float(os.environ.get(UNTIL) or "inf")


def turn(name: str, commits: int) -> int:
    """When what has this name comes, 0 first."""
    return (zlib.crc32(name.encode()) - commits) % TURNS


def _turn(item: pytest.Item, commits: int) -> int:
    if item.get_closest_marker("core"):
        return -1
    # a function's cases come together, and so do the tests of a file which share what is long to set up
    return turn(re.split("::" if item.get_closest_marker("long") else r"\[", item.nodeid)[0], commits)


def _note(kind: str, **what: Any) -> None:
    if file := os.environ.get(FILE):
        with open(file, "a", encoding="utf-8") as notes:
            notes.write(json.dumps({"kind": kind, **what}) + "\n")


# ---- the plugin's hooks ----


def pytest_configure(config: pytest.Config) -> None:
    """Tell the runs apart: a second attempt is a run of its own."""
    if not hasattr(config, "workerinput"):
        _note("begin", arguments=[str(each) for each in config.invocation_params.args])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The core first, then quarter by quarter; without what this run is not for."""
    counted = subprocess.run(["git", "rev-list", "--count", "HEAD"], capture_output=True, text=True, check=False).stdout
    commits = int(counted.strip() or 0)
    turns = {item: _turn(item, commits) for item in items}
    items.sort(key=turns.__getitem__)
    wanted = set(items)
    if quarters := os.environ.get(QUARTERS):
        wanted = {item for item in wanted if turns[item] < 0 or str(turns[item]) in quarters}
    if file := os.environ.get(ONLY):
        named = set(Path(file).read_text(encoding="utf-8").splitlines())
        wanted = {item for item in wanted if item.nodeid in named}
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = [item for item in items if item in wanted]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what is to be run, once."""
    if getattr(session.config, "workerinput", {"workerid": "gw0"})["workerid"] == "gw0":
        _note("collected", tests=[item.nodeid for item in session.items])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin nothing when the time is up."""
    if is_over():
        pytest.skip(f"the time of this run is up ({UNTIL})")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each part of a test; under xdist, workers send theirs to the process that began them, which has no id."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    outcome = {"passed": PASSED, "failed": FAILED, "skipped": NOT_RUN}[report.outcome]
    skipped = outcome == NOT_RUN and isinstance(report.longrepr, tuple)
    why = str(report.longrepr[2]).removeprefix("Skipped: ") if skipped else ""
    _note("test", test=report.nodeid, outcome=outcome, why=why, seconds=round(report.duration, 1))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A quarter may be empty."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and os.environ.get(QUARTERS):
        session.exitstatus = pytest.ExitCode.OK


def main(file: str) -> int:
    """Print a file's sum. Exit code 1 where a test failed."""
    found = tally(Path(file).read_text(encoding="utf-8").splitlines())
    print("\n".join(found.lines()), flush=True)
    return 1 if found.of(FAILED) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
