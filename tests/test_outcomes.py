"""A failure stays one unless the same test passes; what did not run is counted and named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests import outcomes

ROOT = Path(__file__).resolve().parents[1]
END = "=== what became of each test"
SESSION = ROOT / "tests" / "cluster" / "setup" / "session.py"
TESTS = """
import os, pathlib, pytest
pytestmark = pytest.mark.cluster
here = pathlib.Path(__file__).parent

def first_time(name):
    try:
        (here / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

@pytest.mark.parametrize("sign", ["a@b", "c::d"])
def test_passes(sign):
    pass

def test_fails_once():
    assert not first_time("once")

@pytest.fixture
def server():
    assert not first_time("server")

def test_fixture_fails_once(server):
    pass

def test_fails():
    assert False

def test_fails_and_is_then_skipped():
    if not first_time("skipped"):
        pytest.skip("no time is left")
    assert False

def test_is_skipped():
    pytest.skip("no such machine")
"""


def session(tests: Path, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and printed lines of the cluster's session over a folder of tests, which need no cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PODIUM_TEST"))}
    done = subprocess.run(
        [sys.executable, str(SESSION), f"--config-file={ROOT / 'pyproject.toml'}", *arguments, str(tests)],
        env={**kept, "KUBECONFIG": "nowhere", **variables},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "test_some.py").write_text(TESTS)
    return folder


def told(lines: list[str]) -> list[str]:
    """What the session says of its tests at the end, without their folder."""
    last = lines[lines.index(END) + 1 :]
    return [re.sub(r"\S*test_some\.py::", "", line) for line in last]


def test_what_fails_again_has_failed_and_what_passes_then_is_named(tests: Path) -> None:
    code, lines = session(tests)
    assert code == 1
    assert told(lines) == [
        "NOT RUN test_is_skipped: no such machine",
        "PASSED ONLY IN THE SECOND ATTEMPT test_fails_once",
        "PASSED ONLY IN THE SECOND ATTEMPT test_fixture_fails_once",
        "FAILED test_fails",
        "FAILED test_fails_and_is_then_skipped",
        "4 passed, 2 failed, 1 not run",
    ]


def test_second_attempts_that_all_pass_make_a_green_run_that_names_them(tests: Path) -> None:
    code, lines = session(tests, "-k", "once or passes")
    assert code == 0
    assert [line.partition(" test_")[0] for line in told(lines)] == [
        *["PASSED ONLY IN THE SECOND ATTEMPT"] * 2,
        "4 passed, 0 failed, 0 not run",
    ]


def test_what_begins_too_late_is_not_run_and_said_so(tests: Path) -> None:
    code, lines = session(tests, "-k", "passes", PODIUM_TESTS_UNTIL="1")
    assert code == 0
    assert told(lines) == [
        "NOT RUN test_passes[a@b]: the time of this run is up (PODIUM_TESTS_UNTIL)",
        "NOT RUN test_passes[c::d]: the time of this run is up (PODIUM_TESTS_UNTIL)",
        "0 passed, 0 failed, 2 not run",
    ]


@pytest.mark.parametrize(
    ("runs", "outcome"),
    [
        (["failed", "passed"], "passed"),
        (["failed", "not run"], "failed"),
        (["failed"], "failed"),
        (["passed", "failed"], "failed"),
        (["passed", "not run"], "passed"),
        (["not run", "passed"], "passed"),
        ([], "not run"),
    ],
)
def test_later_runs_of_a_test_change_its_outcome_only_by_running_it(runs: list[str], outcome: str) -> None:
    lines = [json.dumps({"kind": "collected", "tests": ["a"]})]
    for each in runs:
        event = {"kind": "test", "test": "a", "outcome": each, "why": "", "seconds": 0}
        lines += [json.dumps({"kind": "begin", "arguments": []}), json.dumps(event)]
    assert outcomes.tally(lines).last == {"a": outcome}


def test_a_test_whose_clean_up_fails_has_failed() -> None:
    event = {"kind": "test", "test": "a", "why": "", "seconds": 0}
    lines = [json.dumps({**event, "outcome": each}) for each in ("passed", "failed")]
    found = outcomes.tally(['{"kind": "begin", "arguments": []}', *lines])
    assert found.last == {"a": "failed"}
    assert found.passed_again == []


def test_each_test_comes_first_in_one_of_four_commits() -> None:
    for name in ("tests/a.py::test_a", "tests/b.py::test_b", "tests/c.py"):
        assert sorted(outcomes.turn(name, commits) for commits in range(7, 11)) == [0, 1, 2, 3]


def test_long_tests_of_the_cluster_have_one_worker(tmp_path: Path) -> None:
    """Two at once leave a small machine nothing, and each worker would set up for itself what they share."""
    folder = tmp_path / "tests" / "cluster"
    (folder / "chart").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "cluster" / "conftest.py", folder)
    asks = "import os, pytest\npytestmark = pytest.mark.cluster\n@pytest.mark.parametrize('n', range(4))\n"
    asks += f"def test(n):\n    with open({str(tmp_path / 'workers.txt')!r}, 'a') as file:\n"
    asks += "        print(os.environ['PYTEST_XDIST_WORKER'], __name__.rpartition('_')[2], file=file)\n"
    for name in ("chart/test_long.py", "chart/test_longer.py", "test_short.py"):
        (folder / name).write_text(asks)
    code, _ = session(folder, f"--rootdir={tmp_path}")
    assert code == 0
    ran = [line.split() for line in (tmp_path / "workers.txt").read_text().splitlines()]
    assert len(ran) == 12
    assert len({worker for worker, file in ran if file in ("long", "longer")}) == 1
