"""What an image must be, checked in the image: `python /opt/podium/share/selfcheck.py` prints JSON, and 1 on a problem.

Meant for a container as restricted as a pod can be: the image's own user, no capabilities, a read-only root with a
scratch volume on /tmp. The trainer's also compiles a function with torch.compile, forward and backward.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

USER = 10001
SCRATCH = "/tmp"  # noqa: S108  the images' one scratch folder
FOLDERS = ("HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FRAMEWORKS = ("kfp", "kubernetes", "mlflow", "boto3", "pandas", "scipy", "matplotlib", "tokenizers", "transformers")


def main() -> int:
    """Run every check that the image's kind calls for. Returns the exit code."""
    began = time.monotonic()
    name, _, version = os.environ["PODIUM_IMAGE"].rpartition(":")
    trainer = name.endswith("trainer")
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "version": lambda: check_version(version),
        "user": check_user,
        "scratch": check_scratch,
        "code is read-only": check_code_is_read_only,
        "tools": lambda: check_tools(trainer),
        "imports": lambda: check_imports(trainer),
    }
    if trainer:
        checks["torch.compile"] = check_torch_compile
    problems, seconds = {}, {}
    for check, run in checks.items():
        started = time.monotonic()
        try:
            found = list(run())
        except Exception as error:  # noqa: BLE001  whatever breaks a check is what it has to report
            found = [f"{type(error).__name__}: {error}"]
        seconds[check] = round(time.monotonic() - started, 2)
        if found:
            problems[check] = found
    report = {
        "image": os.environ["PODIUM_IMAGE"],
        "commit": os.environ["PODIUM_COMMIT"],
        "python": sys.version.split()[0],
        "read_only_root": not os.access("/", os.W_OK) and not _can_write("/var/tmp"),  # noqa: S108
        "seconds": {**seconds, "all": round(time.monotonic() - began, 2)},
        "problems": problems,
    }
    print(json.dumps(report, indent=2))
    return 1 if problems else 0


def check_version(version: str) -> Iterator[str]:
    """The package in the image is the one that its tag names."""
    installed = importlib.metadata.version("podium")
    if installed != version:
        yield f"podium {installed} is installed, the image's tag says {version}"


def check_user() -> Iterator[str]:
    """The image's own user, which a pod can name without a passwd entry of its own."""
    if (os.getuid(), os.getgid()) != (USER, USER):
        yield f"runs as {os.getuid()}:{os.getgid()}, not as {USER}:{USER}"


def check_scratch() -> Iterator[str]:
    """Every folder that programs write to by themselves lies on the scratch and can be made."""
    folders = {name: os.environ[name] for name in FOLDERS if name in os.environ}
    for name, folder in {**folders, "tempfile": tempfile.gettempdir()}.items():
        if Path(SCRATCH) not in [Path(folder), *Path(folder).parents]:
            yield f"{name} is {folder}, outside {SCRATCH}"
            continue
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not _can_write(folder):
            yield f"{name} is {folder}, which can't be written"


def check_code_is_read_only() -> Iterator[str]:
    """A process can't change the code it runs, even where the root is writable; and the code is compiled already."""
    for folder, _, files in os.walk(sys.prefix):
        for path in [folder, *(os.path.join(folder, file) for file in files)]:
            if os.access(path, os.W_OK) and not os.path.islink(path):
                yield f"{path} can be written"
    for module in ("podium", "mlflow"):
        found = importlib.util.find_spec(module)
        if found is None or found.cached is None or not Path(found.cached).exists():
            yield f"{module} is not compiled: each process would compile it anew"


def check_tools(trainer: bool) -> Iterator[str]:
    """What Kubeflow's launcher calls is there, and a compiler only where torch.compile needs it."""
    wanted = ["sh", "mktemp", "podium", *(["gcc", "g++"] if trainer else [])]
    unwanted = [] if trainer else ["gcc", "g++", "cc"]
    yield from (f"{tool} is missing" for tool in wanted if shutil.which(tool) is None)
    yield from (f"{shutil.which(tool)} has no business here" for tool in unwanted if shutil.which(tool))


def check_imports(trainer: bool) -> Iterator[str]:
    """Every module of ours and every framework can be imported; those of ours that need PyTorch only beside it."""
    if not trainer and importlib.util.find_spec("torch"):
        yield "torch is installed"
    for framework in (*FRAMEWORKS, *(["torch", "lm_eval"] if trainer else [])):
        try:
            importlib.import_module(framework)
        except ImportError as error:
            yield f"{framework}: {error}"
    import podium

    for found in pkgutil.walk_packages(podium.__path__, "podium."):
        if found.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if trainer or (error.name or "").partition(".")[0] not in ("torch", "lm_eval"):
                yield f"{found.name}: {error}"


def check_torch_compile() -> Iterator[str]:
    """A compiled function and its gradient equal the eager ones: the compiler, its headers and its caches work."""
    import torch

    def function(x_BD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x_BD).square().sum(dim=-1)

    torch.manual_seed(0)
    eager_BD = torch.randn(8, 64, requires_grad=True)
    compiled_BD = eager_BD.detach().clone().requires_grad_()
    expected_B, got_B = function(eager_BD), torch.compile(function)(compiled_BD)
    expected_B.sum().backward()
    got_B.sum().backward()
    if not torch.allclose(expected_B, got_B, rtol=1e-4, atol=1e-5):
        yield "the compiled function gives other values"
    if compiled_BD.grad is None or not torch.allclose(eager_BD.grad, compiled_BD.grad, rtol=1e-4, atol=1e-5):
        yield "the compiled gradient has other values"
    if not any(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).iterdir()):
        yield "nothing was compiled: its cache is empty"


def _can_write(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
