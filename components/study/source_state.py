"""The state of the sources that a run is made from: commit, branch, and what was changed since that commit."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from podium.trainer.section import Section

MAX_DIFF_BYTES = 2_000_000


class SourceState(Section):
    """What git says of the checkout that Podium runs from. Where it is installed, only the commit may be known."""

    commit: str | None = None
    branch: str | None = None
    changed: list[str] = []
    """Files that differ from the commit, untracked ones included."""
    diff: str = ""
    """The tracked ones as a patch, cut at 2 MB."""

    @property
    def dirty(self) -> bool:
        """Whether what runs is not what the commit says."""
        return bool(self.changed)

    @property
    def warning(self) -> str:
        """What to say before anything is paid; empty for a clean checkout."""
        if not self.changed:
            return ""
        shown = ", ".join(self.changed[:3]) + (", …" if len(self.changed) > 3 else "")
        files = "file" if len(self.changed) == 1 else "files"
        commit = (self.commit or "none")[:12]
        return (
            f"the checkout differs from commit {commit} in {len(self.changed)} {files} ({shown}): nobody else can run "
            "this again from the commit alone"
        )


@cache
def source_state(checkout: Path | None = None) -> SourceState:
    """The state of the checkout at or above a folder, by default Podium's own; PODIUM_COMMIT where there is none.

    Asked once a process: what it has imported does not change with the files.
    """
    folder = checkout or Path(__file__).resolve().parent
    top = _git(folder, "rev-parse", "--show-toplevel")
    # an installed package may lie inside somebody else's checkout: only a tree that holds our sources is ours
    if top is None or (checkout is None and not (Path(top.strip()) / "trainer" / "run.py").exists()):
        return SourceState(commit=os.environ.get("PODIUM_COMMIT"))
    status = _git(folder, "status", "--porcelain") or ""
    commit, branch = (_git(folder, "rev-parse", *name) for name in (["HEAD"], ["--abbrev-ref", "HEAD"]))
    return SourceState(
        commit=commit.strip() if commit else None,
        branch=branch.strip() if branch else None,
        changed=[line[3:] for line in status.splitlines()],
        diff=(_git(folder, "diff", "HEAD") or "")[:MAX_DIFF_BYTES] if status else "",
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        asked = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout
