"""What a cluster leaves outside of its own folder, taken away again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from place import NODE, Place

FOLDERS = (
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
    "/var/lib/cni",
    "/etc/cni",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    "/run/docker",
    "/run/xtables.lock",
    "/etc/docker",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/run/netns",
)
"""Made by programs that can't be told another path. Removed where they were not there before."""


def remember_absent(place: Place) -> None:
    """Note which of those folders this cluster will have made."""
    file = place.state / "absent.json"
    if not file.exists():
        file.write_text(json.dumps([folder for folder in FOLDERS if not os.path.lexists(folder)]))


def forget_made(place: Place) -> None:
    """Remove what was noted, and this cluster's entries in what was there before."""
    file = place.state / "absent.json"
    for folder in json.loads(file.read_text()) if file.exists() else []:
        subprocess.run(["rm", "-rf", "--one-file-system", folder])
    for link in Path("/var/log/containers").glob("*.log"):
        if str(place.state) in os.path.realpath(link):
            link.unlink()
    for entry in Path("/var/lib/cni").glob(f"**/{NODE}-*"):
        entry.unlink()
    # Another containerd may have made this folder first; what the kubelet's namespace has there is ours.
    subprocess.run(["rm", "-rf", "--one-file-system", "/run/containerd/runc/k8s.io"])
    for path in Path("/run/containerd/s").glob("*"):
        with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:  # its shim is gone
                path.unlink()


def remove_remains(place: Place) -> None:
    """End shims, unmount, and remove the control groups of pods. The daemons are gone."""
    for pid in _shims(place):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(5):
        mounts = _mounts(place)
        if not mounts:
            break
        for mount in reversed(mounts):
            subprocess.run(["umount", "-l", mount], capture_output=True)
        time.sleep(0.2)
    for controller in Path("/sys/fs/cgroup").glob("*/kubepods"):
        for folder in sorted((path for path in controller.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        with suppress(OSError):
            controller.rmdir()


def _shims(place: Place) -> list[int]:
    """Processes that serve containers of this cluster's containerd, or of its docker engine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "containerd-shim" in arguments[0] and any(word.startswith(str(place.state)) for word in arguments[1:]):
                found.append(int(folder.name))
    return found


def _mounts(place: Place) -> list[str]:
    roots = tuple(f"{root}/" for root in (place.state, place.containerd_root, place.cache / "docker"))
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if point.startswith(roots)]
