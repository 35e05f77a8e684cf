"""A digest of the trainer's sources: part of every trial's identity, and what an image is asked to have."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import podium.trainer

DIGITS = 16


@cache
def trainer_digest() -> str:
    """A digest of the trainer's sources: names and contents of its Python files."""
    root = Path(podium.trainer.__path__[0])
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:DIGITS]
