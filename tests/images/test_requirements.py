"""What the images install is the lock, split: nothing else, nothing missing, PyTorch only where it belongs."""

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETS = ("build", "steps", "torch", "trainer")


def entries(name: str) -> dict[str, list[str]]:
    """`name==version` → sorted hashes, of a requirements file."""
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([a-zA-Z0-9][^\s;]*)[^\n]*\n((?:    .*\n)*)", text, re.MULTILINE)
    return {pin: sorted(re.findall(r"sha256:[0-9a-f]{64}", hashes)) for pin, hashes in found}


def names(requirements) -> set[str]:
    """Normalized names of requirements, versions and extras dropped."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0]).lower() for each in requirements}


def closure(requirement: str) -> set[str]:
    """Names of a requirement and of what it needs here, by the metadata of what is installed."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = [Requirement(requirement)]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name.lower(), tuple(sorted(wanted.extras)))
        if key in seen:
            continue
        seen.add(key)
        found |= names([wanted.name])
        for line in importlib.metadata.requires(wanted.name) or []:
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
                waiting.append(needed)
    return found


def stated() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SETS)
def test_every_entry_is_one_of_the_lock_with_its_hashes(name):
    lock = entries("requirements")
    split = entries(name)
    assert split
    for pin, hashes in split.items():
        assert hashes == lock.get(pin), f"{pin} is not in the lock so: run `make lock`"
        assert hashes, pin


@pytest.mark.parametrize("name", SETS)
def test_no_address_is_written(name):
    assert "://" not in (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")


def test_the_steps_have_everything_but_pytorch():
    project = stated()["project"]
    wanted = [each for each in project["dependencies"] if not names([each]) & {"torch"}]
    extras = [each for extra in ("datasets", "server") for each in project["optional-dependencies"][extra]]
    there = names(entries("steps"))
    assert names([*wanted, *extras]) <= there
    assert not there & {"torch", "triton", "setuptools", "pip", "pytest", "ruff", "mypy"}
    assert not [name for name in there if name.startswith(("nvidia-", "cuda-"))]


def test_what_a_step_imports_with_its_dependencies_is_there():
    # Installed without resolving, so a dependency that is missing from the file would be missing from the image.
    there = names(entries("steps"))
    for requirement in stated()["project"]["dependencies"]:
        if names([requirement]) != {"torch"}:
            missing = closure(requirement) - there
            assert not missing, f"{requirement} needs {missing}"


def test_the_trainer_has_pytorch_and_smallbench_with_all_they_need():
    project = stated()["project"]
    there = names([*entries("steps"), *entries("torch"), *entries("trainer")])
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["smallbench"]]:
        missing = closure(requirement) - there
        assert not missing, f"{requirement} needs {missing}"


def test_layers_do_not_list_what_a_layer_below_has_in_the_same_version():
    below = entries("steps").keys() | entries("torch").keys()
    assert not below & entries("trainer").keys()


def test_the_split_follows_the_project_file(tmp_path):
    spec = importlib.util.spec_from_file_location("locks_images", ROOT / "locks" / "images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[build-system]\nrequires = ["setuptools>=80"]\n'
        '[project]\ndependencies = ["torch>=2.11", "torchmetrics", "numpy"]\n'
        '[project.optional-dependencies]\ndatasets = ["datasets"]\nserver = ["psycopg"]\nsmallbench = ["lm-eval[hf]"]\n'
    )
    assert module.requirement_sets(project) == {
        "build.txt": ["setuptools>=80"],
        "steps.txt": ["torchmetrics", "numpy", "datasets", "psycopg"],
        "torch.txt": ["torch>=2.11"],
        "trainer.txt": ["lm-eval[hf]"],
    }
