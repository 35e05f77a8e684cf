"""`make cluster-down` takes away all that `make cluster` brought."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SETUP = Path(__file__).parent / "setup"


@pytest.mark.disruptive  # alone: pods that come and go beside it have mounts of their own
def test_a_cluster_that_was_stopped_leaves_nothing_behind(own_cluster):
    programs = Path(shutil.which("kubelet") or "").parent
    assert programs.name.startswith("bin-"), "run it with the `env` of the test cluster sourced"
    folder = Path("/tmp") / f"podium-{uuid.uuid4().hex[:6]}"  # a socket's path is short
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / programs.name).symlink_to(programs)
    env = {**os.environ, "PODIUM_CLUSTER_CACHE": f"{folder}/cache", "PODIUM_CLUSTER_DIR": f"{folder}/state"}
    try:
        argv = [str(SETUP / "isolated.sh"), folder.name, sys.executable, str(SETUP / "up_and_down.py")]
        done = subprocess.run(argv, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)
    seen = json.loads(done.stdout)
    # what another cluster here took away meanwhile is nothing of this one's
    left = {name: list((Counter(map(str, found)) - Counter(map(str, seen["before"][name]))).elements())
            for name, found in seen["after"].items()}  # fmt: skip
    assert not any(left.values()), left
    grew = {name: len(found) for name, found in seen["during"].items() if found != seen["before"][name]}
    print(f"came and went: {grew}")
    assert {"processes", "mounts", "links", "iptables-save", "cgroups", "state"} <= grew.keys()
