"""`make images`: build Podium's two images with Docker (BuildKit) or Podman, and print their sizes.

    python3 images/build.py                            both, tagged with the package's version
    python3 images/build.py --python-image registry.example/python:3.12-slim
    python3 images/build.py --torch torch-cpu.txt      another PyTorch: a file of locks/, with hashes

Runs with nothing but a bare Python. Where this machine's pip has an index or certificates of its own, the build uses
them too; they are mounted as secrets, so that no image and no layer's history holds an address of this machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"steps": "podium/python-steps", "trainer": "podium/python-trainer"}
"""Target of the Dockerfile → name of its image."""


def main(arguments: list[str] | None = None) -> int:
    """Build what the arguments say. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="one image only; default: both")
    parser.add_argument("--engine", default="docker", help="what builds, with its options; default: docker")
    parser.add_argument("--python-image", help="base image: Debian with Python 3.11 to 3.13; default: the Dockerfile's")
    parser.add_argument("--torch", help="requirements file in locks/ with the PyTorch to install; default: torch.txt")
    parser.add_argument("--apt-sources", type=Path, help="sources.list for the compiler; default: the base image's own")
    parser.add_argument("--network", help="the builds' network, as the engine names it; default: the engine's")
    given = parser.parse_args(arguments)
    version, commit = package_version(), checkout_commit()
    options = {"PYTHON_IMAGE": given.python_image, "TORCH": given.torch, "VERSION": version, "COMMIT": commit}
    with tempfile.TemporaryDirectory(prefix="podium-build-") as folder:
        secrets = write_secrets(Path(folder), given.apt_sources)
        for target in given.target or TARGETS:
            began = time.monotonic()
            command = build_command(shlex.split(given.engine), target, version, options, secrets, given.network)
            if subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False).returncode != 0:
                print(f"images: {TARGETS[target]} was not built: see above", file=sys.stderr)
                return 1
            size = image_size(shlex.split(given.engine), f"{TARGETS[target]}:{version}") / 1e9
            print(f"images: {TARGETS[target]}:{version}, {size:.2f} GB, {time.monotonic() - began:.0f} s", flush=True)
    return 0


def build_command(
    engine: list[str],
    target: str,
    version: str,
    options: dict[str, str | None],
    secrets: dict[str, Path],
    network: str | None = None,
) -> list[str]:
    """The engine's command that builds a target; an option that is None is left to the Dockerfile."""
    command = [*engine, "build", "--target", target, "--tag", f"{TARGETS[target]}:{version}"]
    command += [f"--build-arg={name}={value}" for name, value in options.items() if value is not None]
    command += [f"--secret=id={name},src={path}" for name, path in secrets.items()]
    command += [f"--network={network}"] if network else []
    return [*command, str(ROOT)]


def image_size(engine: list[str], image: str) -> int:
    """Bytes of an image's layers, as they lie on disk."""
    command = [*engine, "image", "inspect", "--format", "{{.Size}}", image]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def write_secrets(folder: Path, apt_sources: Path | None) -> dict[str, Path]:
    """Secret's name → file, for what this machine's package tools were told."""
    secrets = {}
    settings = {}
    index = _pip_setting("index-url")
    if index:
        settings |= {"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index}
    certificates = _pip_setting("cert")
    if certificates:
        secrets["ca"] = Path(certificates)
        settings |= {"PIP_CERT": "/run/secrets/ca", "SSL_CERT_FILE": "/run/secrets/ca"}
    if settings:
        secrets["fetch"] = folder / "fetch"
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()]
        secrets["fetch"].write_text("".join(lines), encoding="utf-8")
    if apt_sources is not None:
        secrets["apt"] = apt_sources.resolve()
    return secrets


def package_version() -> str:
    """The version that the images are tagged with, from pyproject.toml."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return version


def checkout_commit() -> str:
    """The commit that is built, with `-dirty` where tracked files differ from it; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _pip_setting(name: str) -> str:
    given = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if given:
        return given
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
