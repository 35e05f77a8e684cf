"""Identity of a process (host, pid, start time; never a clock), and names of scratch files from which it can be told.

A scratch file's name identifies the process that writes it, so that a later process can remove what a killed one left
without touching what a living one is still writing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

SCRATCH = ".tmp-"
"""Prefix of a name that is still being written, or that a killed writer left."""


@cache
def host_identity() -> str:
    """This machine, this boot and this pid namespace: within one identity a pid means the same process to everyone.

    Containers on one machine share its boot and often its host name, but not its pids.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot, so that a reused pid is told apart.

    None where there is no such process (a zombie has ended), or no /proc to ask.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else int(fields[18])


def own_identity() -> dict[str, object]:
    """`host`, `pid` and `started` of this process."""
    return {"host": host_identity(), "pid": os.getpid(), "started": start_ticks(os.getpid())}


def is_alive(host: object, pid: object, started: object) -> bool | None:
    """Whether that process lives; None where this machine can't tell (another host, or no start time to compare)."""
    if host != host_identity() or started is None or not isinstance(pid, int):
        return None
    return start_ticks(pid) == started


def scratch_name(of: str = "") -> str:
    """A new name for a file that this process writes and then renames or removes: `.tmp-<host>-<pid>-<start>-…`."""
    return f"{SCRATCH}{_host_digest()}-{os.getpid()}-{start_ticks(os.getpid())}-{of or uuid.uuid4().hex[:12]}"


def writer_is_alive(name: str) -> bool | None:
    """Whether the writer of a scratch name lives; None where this machine can't tell, or the name does not say."""
    host, pid, started, *_ = [*name.removeprefix(SCRATCH).split("-"), "", "", ""]
    if host != _host_digest() or not pid.isdigit() or not started.isdigit():
        return None
    return start_ticks(int(pid)) == int(started)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A new local folder `podium-<purpose>-…`, removed at the end of the context.

    Those that killed processes left are removed first: SIGKILL removes nothing, and each crash would leave a checkpoint
    on the local disk.
    """
    root, prefix = Path(tempfile.gettempdir()), f"podium-{purpose}-"
    for path in root.glob(f"{prefix}*"):
        if writer_is_alive(SCRATCH + path.name.removeprefix(prefix)) is False:
            shutil.rmtree(path, ignore_errors=True)
    folder = root / (prefix + scratch_name().removeprefix(SCRATCH))
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_scratch(folder: Path) -> None:
    """Remove what killed processes of this machine left half made in a local folder (not below it), such as a cache."""
    for path in folder.glob(f"{SCRATCH}*"):
        if writer_is_alive(path.name) is not False:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # another process removes it too
                path.unlink()


@cache
def _host_digest() -> str:
    return hashlib.sha256(host_identity().encode()).hexdigest()[:8]
