"""`make test-cluster`: all cluster tests in one pytest run, on a cluster that is started for it if none runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import daemons
from place import CHECKOUT, here, say

FAILED = 1
"""Pytest's exit code where tests failed."""
CLUSTER = Path(__file__).parent / "cluster.py"


def main(arguments: list[str]) -> int:
    """Exit code of pytest, or 1 where there is no cluster to test on."""
    environment = dict(os.environ)
    mine = False
    if not environment.get("KUBECONFIG"):
        place = here()
        mine = daemons.pid_of(place, "kube-apiserver") is None
        if subprocess.run([sys.executable, str(CLUSTER), "up"]).returncode:
            if mine:
                subprocess.run([sys.executable, str(CLUSTER), "down"])
            return 1
        environment |= _exports(place.state / "env")
    workers = str(min(4, max(2, os.cpu_count() or 2)))
    options = ["-m", "cluster", "--durations=15", *arguments]
    together = ["-rPs", "-n", workers, "--dist", "loadgroup"]
    try:
        code = _pytest([*options, *together], environment)
        if code == FAILED and not is_over():
            # a minute in which the whole machine stood still is no fault of Podium's; what fails again is
            say("once more, one after the other: what failed")
            code = _pytest([*options, "-rA", "--last-failed", "--last-failed-no-failures=none"], environment)
        return code
    finally:
        if mine:
            say("the tests are over")
            subprocess.run([sys.executable, str(CLUSTER), "down"])


def is_over() -> bool:
    """Whether this run's time is up: PODIUM_TESTS_UNTIL, in seconds of the clock; tests that come later are skipped."""
    return time.time() > float(os.environ.get("PODIUM_TESTS_UNTIL") or "inf")


def _pytest(options: list[str], environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "pytest", *options, "tests/cluster"]
    return subprocess.run(command, cwd=CHECKOUT, env={**environment, "OMP_NUM_THREADS": "1"}).returncode


def _exports(file: Path) -> dict[str, str]:
    """The variables that a shell has after it sourced a file."""
    shell = subprocess.run(["sh", "-c", f". {file} && env -0"], capture_output=True, text=True, check=True)
    return dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if "=" in entry)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
