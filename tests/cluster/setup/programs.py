"""Everything that the cluster runs: Debian's packages, and the Go programs that Debian lacks, built once a version."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from place import Place, SetupError, say
from versions import DEBIAN, GO_MODULES, LINKER_FLAGS, PROGRAMS

NEEDED_GIB = 30


def install_packages() -> None:
    """Install what is missing, without starting any of its services."""
    missing = sorted({package for name, package in DEBIAN.items() if not _present(name)})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise SetupError(f"there is no apt-get here to install {', '.join(missing)}: the test cluster needs Debian 12")
    say(f"installing {' '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        # Debian starts a service that it installs, unless this file says no.
        policy = Path("/usr/sbin/policy-rc.d")
        before = policy.read_bytes() if policy.exists() else None
        log = Path(folder) / "apt.log"
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        try:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            for attempt in range(3):
                with log.open("wb") as output:
                    subprocess.run(["apt-get", "update", "-q"], stdout=output, stderr=output, env=env)
                    if subprocess.run(install, stdout=output, stderr=output, env=env).returncode == 0:
                        return
                say(f"apt-get failed (try {attempt + 1} of 3)")
                time.sleep(10)
            raise SetupError(f"apt-get can't install {', '.join(missing)}:\n{log.read_text(errors='replace')[-2000:]}")
        finally:
            if before is None:
                policy.unlink(missing_ok=True)
            else:
                policy.write_bytes(before)


def _present(name: str) -> bool:
    return (
        Path(name).exists() if name.startswith("/") else shutil.which(name, path="/usr/bin:/usr/sbin:/bin") is not None
    )


def build_programs(place: Place) -> None:
    """Build the Go programs of this version into the cache. A build that another command has begun is waited for."""
    place.cache.mkdir(parents=True, exist_ok=True)
    with (place.cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for programs in PROGRAMS for name in programs if not (place.bin / name).exists()]
        if not missing:
            return
        go = shutil.which("go") or "/usr/local/go/bin/go"
        if not Path(go).exists():
            raise SetupError("there is no Go here (1.26 or later) to build Kubernetes with")
        free = shutil.disk_usage(place.cache).free >> 30
        if free < NEEDED_GIB:
            raise SetupError(f"{place.cache} has {free} GiB free, and a cold build with images takes {NEEDED_GIB}")
        say(f"building {len(missing)} Go programs (about 10 minutes on 2 cores when nothing is cached)")
        began = time.monotonic()
        place.bin.mkdir(exist_ok=True)
        for module, programs in zip(GO_MODULES, PROGRAMS, strict=True):
            _build(place, go, module, programs)
        say(f"built in {time.monotonic() - began:.0f} s")


def _build(place: Place, go: str, module: Path, programs: dict[str, str]) -> None:
    argv = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", LINKER_FLAGS]
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""}
    with tempfile.TemporaryDirectory(dir=place.cache) as folder:
        for attempt in range(3):  # a module proxy hiccups now and then; what was built stays built
            command = [*argv, "-o", f"{folder}/", *programs.values()]
            built = subprocess.run(command, cwd=module, env=env, capture_output=True, text=True)
            if built.returncode == 0:
                break
            say(f"go build failed (try {attempt + 1} of 3): {' '.join(built.stderr.splitlines()[-1:])}")
            time.sleep(5)
        else:
            raise SetupError(f"go build failed:\n{built.stderr[-3000:]}")
        for path in Path(folder).iterdir():
            path.rename(place.bin / path.name)
