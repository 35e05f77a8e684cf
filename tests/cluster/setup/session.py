"""`make test-cluster`: all cluster tests in one pytest run, on a cluster that is started for it if none runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import daemons
import pytest
from place import CHECKOUT, here, say

sys.path.append(str(CHECKOUT))
from tests import outcomes

CLUSTER = Path(__file__).parent / "cluster.py"
TESTS = "tests/cluster"


def main(arguments: list[str]) -> int:
    """Exit code 1 where a test failed and did not pass in a second attempt, or where there is no cluster to test on."""
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
    try:
        return run_tests(arguments, environment)
    finally:
        if mine:
            say("the tests are over")
            subprocess.run([sys.executable, str(CLUSTER), "down"])


def run_tests(arguments: list[str], environment: dict[str, str]) -> int:
    """Run them side by side, then what failed once more, one after the other; tell what became of each.

    A minute in which the whole machine stood still is no fault of Podium's; but what fails again, or has no time left
    for a second attempt, has failed.
    """
    workers = str(min(4, max(2, os.cpu_count() or 2)))
    together = ["-rPs", "-n", workers, "--dist", "loadscope", "--no-loadscope-reorder"]
    if not any(Path(CHECKOUT, each.partition("::")[0]).exists() for each in arguments):
        arguments = [*arguments, TESTS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(environment.get(outcomes.FILE) or f"{folder}/outcomes.jsonl")
        before = file.stat().st_size if file.exists() else 0
        environment = {**environment, "OMP_NUM_THREADS": "1", outcomes.FILE: str(file)}

        def run(*options: str, **more: str) -> int:
            always = ["-p", "tests.outcomes", "-m", "cluster", "--durations=15"]
            command = [sys.executable, "-m", "pytest", *always, *options, *arguments]
            return subprocess.run(command, cwd=CHECKOUT, env={**environment, **more}).returncode

        def told() -> outcomes.Tally:
            return outcomes.tally(file.read_bytes()[before:].decode().splitlines())

        code = run(*together)
        failed = told().of(outcomes.FAILED)
        if failed and not outcomes.is_over():
            say(f"once more, one after the other: the {len(failed)} that failed")
            again = Path(folder, "again.txt")
            again.write_text("\n".join(failed), encoding="utf-8")
            run("-rA", **{outcomes.ONLY: str(again)})
        found = told()
    print("\n".join(found.lines()), flush=True)
    if found.of(outcomes.FAILED):
        return 1
    return 0 if found.passed_again and code == pytest.ExitCode.TESTS_FAILED else code


def _exports(file: Path) -> dict[str, str]:
    """The variables that a shell has after it sourced a file."""
    shell = subprocess.run(["sh", "-c", f". {file} && env -0"], capture_output=True, text=True, check=True)
    return dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if "=" in entry)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
