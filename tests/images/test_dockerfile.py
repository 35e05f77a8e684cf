"""What the Dockerfile must keep to, read from its text: the cluster tests see the built images."""

import re
from pathlib import Path

import pytest
import yaml

from podium.components.kfp_components import STEPS_IMAGE, TRAINER_IMAGE

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CODE = re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ")


def stages() -> dict[str, tuple[str, list[str]]]:
    """Stage → (what it starts from, its instructions)."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in CODE.splitlines():
        start = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if start:
            found[start[2]] = (start[1], [])
        elif line.strip() and found:
            found[list(found)[-1]][1].append(re.sub(r"\s+", " ", line.strip()))
    return found


def lineage(target: str) -> list[str]:
    """Every instruction that made a target, from the base image on."""
    parent, own = stages()[target]
    return [*(lineage(parent) if parent in stages() else []), *own]


IMAGES = {"steps": STEPS_IMAGE, "trainer": TRAINER_IMAGE}


@pytest.mark.parametrize("target", IMAGES)
def test_runs_as_a_fixed_user_that_is_not_root(target):
    users = [line for line in lineage(target) if line.startswith("USER")]
    assert users == ["USER 10001:10001"]


@pytest.mark.parametrize("target", IMAGES)
def test_has_no_entry_point_since_kubernetes_gives_every_command_in_full(target):
    assert not [line for line in lineage(target) if line.startswith("ENTRYPOINT")]


@pytest.mark.parametrize("target", IMAGES)
def test_says_its_version_and_commit_in_labels_and_to_its_programs(target):
    text = "\n".join(lineage(target))
    assert "org.opencontainers.image.version=${VERSION}" in text
    assert "org.opencontainers.image.revision=${COMMIT}" in text
    name = IMAGES[target].partition(":")[0]
    assert f"PODIUM_IMAGE={name}:${{VERSION}} PODIUM_COMMIT=${{COMMIT}}" in text


@pytest.mark.parametrize("target", IMAGES)
def test_the_code_comes_after_every_package_and_the_commit_last(target):
    made = lineage(target)
    code = next(index for index, line in enumerate(made) if "from=wheel" in line)
    packages = [index for index, line in enumerate(made) if "install -r" in line]
    assert packages
    assert max(packages) < code
    assert all(made.index(line) > code for line in made if line.startswith("ARG COMMIT"))
    assert not [line for line in made if line.startswith("COPY") and "images/selfcheck.py" not in line]


def test_only_the_trainer_has_a_compiler_and_pytorch():
    assert not [line for line in lineage("steps") if "gcc" in line or "TORCH" in line]
    assert [line for line in lineage("trainer") if "install -y" in line and " gcc g++ " in line]


def test_the_trainer_writes_its_caches_to_the_scratch():
    text = "\n".join(lineage("trainer"))
    for name in ("HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR"):
        assert re.search(rf"\b{name}=/tmp(/|\b)", text), name


def test_packages_come_by_hash_and_leave_no_cache():
    install = (ROOT / "images" / "install.sh").read_text(encoding="utf-8")
    assert "--require-hashes" in install
    assert "--no-deps" in install
    assert "--compile-bytecode" in install
    for line in CODE.splitlines():
        if "install -r" in line:
            assert "--mount=type=cache,target=/var/cache/uv" in line
        if "pip install" in line:
            assert "--no-cache-dir" in line
            assert "--require-hashes" in line
        if "apt-get" in line:
            assert "rm -rf /var/lib/apt/lists/*" in line


def test_addresses_come_as_secrets_and_not_as_arguments_or_variables():
    assert "://" not in CODE
    for line in CODE.splitlines():
        if line.startswith(("ARG", "ENV")):
            assert not re.search(r"INDEX|PROXY|MIRROR|TOKEN|PASSWORD", line), line


@pytest.mark.parametrize("file", ["python-steps", "python-trainer"])
def test_the_base_image_is_an_argument(file):
    assert "ARG PYTHON_IMAGE=python:3.11-slim" in CODE
    assert "FROM ${PYTHON_IMAGE} AS base" in CODE
    assert file in TEXT


def test_the_builder_sees_only_what_an_image_is_made_of():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out, and only what follows is let in"
    allowed = {rule[1:].split("/")[0] for rule in rules if rule.startswith("!")}
    assert allowed == {
        *("Dockerfile", "LICENSE", "README.md", "pyproject.toml"),
        *("images", "locks", "src", "trainer", "components", "pipelines"),
    }
    copied = {part for line in CODE.splitlines() if line.startswith("COPY") for part in line.split()[1:-1]}
    assert {path.split("/")[0] for path in copied if not path.startswith("-")} <= allowed


def test_the_compiled_studies_name_the_images_that_are_built():
    golden = list((ROOT / "tests" / "golden").glob("*.yaml"))
    assert golden
    for file in golden:
        spec = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        for executor in spec.get("deploymentSpec", {}).get("executors", {}).values():
            image = executor["container"]["image"]
            assert re.sub(r":.*", "", image) in {re.sub(r":.*", "", each) for each in IMAGES.values()}
