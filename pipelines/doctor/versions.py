"""Which versions meet: this machine's, those that Podium is made for, and those of the images that would run."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from podium.pipelines.doctor.finding import Finding

if TYPE_CHECKING:
    from podium.pipelines.installation import Installation

KFP = "2.17"
"""What compiled pipelines are tried on; the SDK's and the server's."""
PYTHONS = ("3.11", "3.12", "3.13")


def check_versions(site: Installation) -> Iterator[Finding]:
    """This machine's versions, and whether the images are of the same Podium."""
    import podium
    from podium.pipelines.installation import images

    python, kfp = platform.python_version(), importlib.metadata.version("kfp")
    said = f"podium {podium.__version__}, Python {python}, kfp {kfp}"
    wrong = []
    if not kfp.startswith(f"{KFP}."):
        wrong.append(f"pip install 'kfp~={KFP}.0'")
    if not python.startswith(PYTHONS):
        wrong.append(f"use Python {' or '.join(PYTHONS)}")
    yield Finding("Versions", "warning" if wrong else "ok", said, "; ".join(wrong))
    for kind, image in images(site).items():
        yield _image(kind.replace("_", " "), image, podium.__version__)


def _image(kind: str, image: str, version: str) -> Finding:
    tag = re.search(r":([^/:@]+)(@|$)", image)
    if tag is None:
        do = f"name the tag that is this version, {version}"
        return Finding("Images", "warning", f"{kind}: {image} says no version", do)
    if tag[1].split("-")[0] != version:
        do = "install that version of podium here, or upgrade the cluster's installation"
        return Finding("Images", "warning", f"{kind}: {image} is not this podium, {version}", do)
    return Finding("Images", "ok", f"{kind}: {image}")
