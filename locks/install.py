"""`make setup`: a virtual environment with exactly what the lock says, and this checkout in it as `podium`.

Runs with nothing but a bare Python: makes the environment, fetches the pinned installer (uv, several times as fast
as pip; plain pip where uv cannot be had), installs the lock by its hashes, then links the checkout, for which nothing
is fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)


def main() -> int:
    """Install into the folder given as the only argument. Returns the exit code."""
    here = sys.version_info[:2]
    if not OLDEST <= here <= NEWEST:
        wanted = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
        return _fail(
            f"Podium needs Python {wanted}, got {here[0]}.{here[1]} ({sys.executable})\n"
            "  name another one: make setup PYTHON=python3.12"
        )
    target = Path(sys.argv[1]).resolve()
    python = target / "bin" / "python"
    if not _makes(python, here):
        try:
            venv.create(target, clear=True, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return _fail(
                f"this Python can't make a virtual environment: {error}\n"
                f"  on Debian and Ubuntu: apt-get install python{here[0]}.{here[1]}-venv"
            )
    os.chdir(ROOT)
    lock = ["--require-hashes", "-r", "locks/requirements.txt"]
    itself = ["--no-deps", "--no-build-isolation", "-e", "."]
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore"]
    # uv leaves compiling to the first import, which writes nothing where PYTHONDONTWRITEBYTECODE is set: then every
    # process compiles PyTorch and MLflow anew, 5 to 10 seconds each.
    uv = [str(python), "-m", "uv", "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
    quick = _ran([*pip, "--require-hashes", "-r", "locks/uv.txt"], {})
    if not (quick and _ran([*uv, *lock], _settings_for_uv(python))):
        print("setup: going on with pip, which takes a few minutes longer", file=sys.stderr, flush=True)
        if not _ran([*pip, *lock], {}):
            return _fail("the packages of locks/requirements.txt could not be installed: see above")
    if not _ran([*pip, *itself], {}):
        return _fail("the checkout could not be installed: see above")
    return 0


def _makes(python: Path, version: tuple[int, int]) -> bool:
    """Whether the environment is there already and of this Python's version."""
    if not python.exists():
        return False
    code = "import sys; print(*sys.version_info[:2])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.split() == [str(part) for part in version]


def _settings_for_uv(python: Path) -> dict[str, str]:
    """What pip was told about its mirror and certificates, in uv's words: uv reads none of pip's settings."""
    settings = {}
    for name, variable in (("index-url", "UV_DEFAULT_INDEX"), ("cert", "SSL_CERT_FILE")):
        value = os.environ.get("PIP_" + name.upper().replace("-", "_")) or _pip_setting(python, f"global.{name}")
        if value and variable not in os.environ:
            settings[variable] = value
    return settings


def _pip_setting(python: Path, name: str) -> str:
    found = subprocess.run([python, "-m", "pip", "config", "get", name], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def _ran(command: list[str], settings: dict[str, str]) -> bool:
    return subprocess.run(command, env={**os.environ, **settings}, check=False).returncode == 0


def _fail(message: str) -> int:
    print(f"setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
