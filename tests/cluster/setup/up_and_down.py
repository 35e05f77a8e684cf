"""Starts a cluster, runs a pod, stops it, and prints as JSON what was there before and what is left.

Run it by `isolated.sh`, where no other cluster is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import daemons
from cluster import down, kubectl, up
from network import SYSCTLS
from place import Place, here

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "pause"},
    "spec": {"containers": [{"name": "main", "image": "podium-test/pause:1", "imagePullPolicy": "Never"}]},
}


def footprint(place: Place) -> dict[str, Any]:
    """Everything of this machine that a cluster touches."""
    found: dict[str, Any] = {"processes": [], "state": sorted(map(str, place.state.glob("*")))}
    for folder in Path("/proc").glob("[0-9]*"):
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        if command and int(folder.name) not in (os.getpid(), os.getppid()):
            found["processes"].append(command)
    found["mounts"] = sorted(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True).stdout)
    found["links"] = sorted(link["ifname"] for link in links)
    for tool in ("iptables-save", "ip6tables-save"):
        lines = subprocess.run([tool], capture_output=True, text=True).stdout.splitlines()
        found[tool] = [line for line in lines if line.startswith(("-", ":KUBE", ":CNI"))]
    found["settings"] = {name: (Path("/proc/sys") / name).read_text().strip() for name in SYSCTLS}
    found["cgroups"] = sorted(str(path) for path in Path("/sys/fs/cgroup").glob("*/kube*"))
    return found


def main() -> None:
    """See the module."""
    place = here()
    before = footprint(place)
    up(place, images=False)
    kubectl(place, "wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    kubectl(place, "apply", "-f", "-", stdin=json.dumps(POD))
    kubectl(place, "wait", "--for=condition=Ready", "pod/pause", "--timeout=120s")
    daemons.stop(place, "kube-scheduler", kill=True)  # one that has died must not keep the rest from going
    during = footprint(place)
    down(place)
    json.dump({"before": before, "during": during, "after": footprint(place)}, sys.stdout)


if __name__ == "__main__":
    main()
