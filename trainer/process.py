"""Which process this is, in words that another process can check: host, pid and start time, never a clock."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


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
