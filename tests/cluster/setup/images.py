"""The project's images: built by a docker engine of our own, then handed to the node's containerd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import daemons
from node import ctr
from place import CHECKOUT, Place, SetupError, say

BASE = "podium/debian-python:bookworm"


def start_docker(place: Place) -> None:
    """A docker engine that leaves the pods' bridge and rules alone; none where DOCKER_HOST names one."""
    if os.environ.get("DOCKER_HOST"):
        return
    place.docker_socket.parent.mkdir(parents=True, exist_ok=True)
    daemons.start(
        place,
        "dockerd",
        [
            place.program("dockerd"),
            f"--data-root={place.cache}/docker",
            f"--exec-root={place.state}/docker/exec",
            f"--pidfile={place.state}/docker/docker.pid",
            f"--host=unix://{place.docker_socket}",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ],
    )
    daemons.wait(
        place,
        "docker answers",
        lambda: subprocess.run(docker(place, "version"), capture_output=True).returncode == 0,
        daemon="dockerd",
    )


def docker(place: Place, *arguments: str) -> list[str]:
    """A command of docker's client."""
    return [place.program("docker"), "-H", place.docker_host, *arguments]


def build_images(place: Place) -> None:
    """Build the project's images on a Debian of our own, since there is no registry; what is cached takes seconds."""
    began = time.monotonic()
    engine = " ".join(docker(place))
    mirror = _mirror()
    if subprocess.run(docker(place, "image", "inspect", BASE), capture_output=True).returncode:
        say(f"making the base image {BASE}")
        _run_twice([str(CHECKOUT / "images" / "debian-python.sh"), BASE], {"DOCKER": engine, "MIRROR": mirror})
    say("building the images")
    sources = place.state / "sources.list"
    sources.write_text(f"deb {mirror} bookworm main\n")
    settings = [f"ENGINE={engine}", f"PYTHON_IMAGE={BASE}", f"APT_SOURCES={sources}", "NETWORK=host"]
    _run_twice(["make", "--no-print-directory", "-C", str(CHECKOUT), "images", *settings], {})
    say(f"images built in {time.monotonic() - began:.0f} s")


def _run_twice(argv: list[str], env: dict[str, str]) -> None:
    for _ in range(2):  # a mirror hiccups now and then; the layers that were built stay
        if subprocess.run(argv, env={**os.environ, **env}, stdout=sys.stderr).returncode == 0:
            return
        say(f"failed: {' '.join(argv[:4])}")
    raise SetupError(f"{' '.join(argv[:5])} failed twice: its output is above")


def _mirror() -> str:
    """Where this machine takes Debian's packages from."""
    for file in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        if file.exists():
            found = re.search(r"^(?:URIs:|deb)\s+(?:\[[^]]*\]\s+)?(\S+)", file.read_text(), re.MULTILINE)
            if found:
                return found[1]
    raise SetupError("no Debian mirror is named under /etc/apt")


def image_names() -> list[str]:
    """The images that the tests run, as `make images` tags them."""
    from versions import package_version

    return [f"podium/python-{kind}:{package_version()}" for kind in ("steps", "trainer")]


def load_images(place: Place, names: list[str]) -> None:
    """Hand images to containerd, unless it has them as they are."""
    stamps = place.containerd_root / "podium-images.json"
    loaded = json.loads(stamps.read_text()) if stamps.exists() else {}
    listed = subprocess.run(ctr(place, "images", "ls", "-q"), capture_output=True, text=True).stdout.split()
    ids = {name: daemons.output_of(docker(place, "image", "inspect", "-f", "{{.Id}}", name)).strip() for name in names}
    wanted = [name for name in names if loaded.get(name) != ids[name] or f"docker.io/{name}" not in listed]
    if not wanted:
        return
    say(f"loading {' '.join(wanted)} into containerd")
    began = time.monotonic()
    saved = subprocess.Popen(docker(place, "save", *wanted), stdout=subprocess.PIPE)
    taken = subprocess.run(ctr(place, "images", "import", "-"), stdin=saved.stdout, capture_output=True, text=True)
    if saved.wait() or taken.returncode:
        raise SetupError(f"containerd can't import {' '.join(wanted)}: {taken.stderr[-1000:]}")
    _drop_old_names(place)
    _drop_layers(place)
    stamps.write_text(json.dumps({**loaded, **{name: ids[name] for name in wanted}}))
    say(f"loaded in {time.monotonic() - began:.0f} s")


def _drop_old_names(place: Place) -> None:
    """Forget images that only their id still names: what a tag meant before, gigabytes of it."""
    rows = [line.split() for line in daemons.output_of(ctr(place, "images", "ls")).splitlines()[1:]]
    tagged = {row[2] for row in rows if not row[0].startswith("sha256:")}
    old = [row[0] for row in rows if row[0].startswith("sha256:") and row[2] not in tagged]
    if old:
        daemons.output_of(ctr(place, "images", "rm", *old))


def _drop_layers(place: Place) -> None:
    """Forget the archives of layers that lie unpacked: containers start from those, and the disk is not endless."""
    rows = [line.split() for line in daemons.output_of(ctr(place, "content", "ls")).splitlines()[1:]]
    layers = [row[0] for row in rows if row[-1].startswith("containerd.io/uncompressed=")]
    if layers:
        daemons.output_of(ctr(place, "content", "rm", *layers))
