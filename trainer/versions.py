"""What ran: recorded with every result, so that a number can be traced to code, image and device."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import podium
from podium.trainer.result import Versions


def versions(device: torch.device, world_size: int) -> Versions:
    """The versions of this process. Commit and image come from PODIUM_COMMIT and PODIUM_IMAGE where they are set."""
    return Versions(
        podium=podium.__version__,
        commit=os.environ.get("PODIUM_COMMIT") or _checkout_commit(),
        image=os.environ.get("PODIUM_IMAGE"),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda if device.type == "cuda" else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        threads=torch.get_num_threads(),
        world_size=world_size,
    )


def _checkout_commit() -> str | None:
    """The commit of the checkout that this file lies in; None where it is installed."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=top, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
