"""`make lock`: what each layer of the container images installs, picked out of the lock.

    build.txt     what builds the package's wheel
    steps.txt     everything that Podium needs but PyTorch, with the corpora of the hub and what an MLflow server needs
    torch.txt     PyTorch and what it needs, the CUDA libraries of its build included
    trainer.txt   what only a trial needs beyond both: SmallBench

The lock is the one truth: it constrains all four, so that each entry has the lock's version and hashes (a test holds
that). Each file is whole, so that it installs without resolving anything; an image installs them over each other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

LOCKS = Path(__file__).resolve().parent
STEPS_EXTRAS = ("datasets", "server")
TRAINER_EXTRAS = ("smallbench",)


def requirement_sets(project: Path) -> dict[str, list[str]]:
    """File → requirements as pyproject.toml states them, from which the file's closure is resolved."""
    stated = tomllib.loads(project.read_text(encoding="utf-8"))
    dependencies, extras = stated["project"]["dependencies"], stated["project"]["optional-dependencies"]
    torch = [each for each in dependencies if _name(each) == "torch"]
    steps = [each for each in dependencies if each not in torch]
    steps += [each for extra in STEPS_EXTRAS for each in extras[extra]]
    return {
        "build.txt": stated["build-system"]["requires"],
        "steps.txt": steps,
        "torch.txt": torch,
        "trainer.txt": [each for extra in TRAINER_EXTRAS for each in extras[extra]],
    }


def main() -> int:
    """Write the four files anew. Returns the exit code."""
    sets = requirement_sets(LOCKS.parent / "pyproject.toml")
    there: set[str] = set()
    for file, requirements in sets.items():
        entries = _closure(requirements)
        # What a layer below has is not listed again: trainer.txt would repeat torch.txt and so change with it.
        listed = [entry for pin, entry in entries.items() if file != "trainer.txt" or pin not in there]
        there |= entries.keys()
        text = "".join(listed)
        (LOCKS / file).write_text(
            f"# Made by `make lock` from requirements.txt; see images.py.\n{text}", encoding="utf-8"
        )
    return 0


def _closure(requirements: list[str]) -> dict[str, str]:
    """`name==version` → the closure's entry with marker and hashes, at the lock's version."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    resolved = subprocess.run(
        [*command, "--constraints", "requirements.txt"],
        cwd=LOCKS,
        input="\n".join(requirements),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    entries = re.findall(r"^[A-Za-z0-9].*\n(?:    .*\n)*", resolved.stdout, re.MULTILINE)
    return {entry.split(maxsplit=1)[0]: entry for entry in entries}


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


if __name__ == "__main__":
    sys.exit(main())
