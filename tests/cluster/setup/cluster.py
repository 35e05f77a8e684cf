"""A whole Kubernetes on this machine, for tests: `python cluster.py build|up|load|down|status|restart|stop|start`.

Everything lies in two folders: programs and images in PODIUM_CLUSTER_CACHE, the running cluster in PODIUM_CLUSTER_DIR.
Every command can be repeated; `up` does what is missing. See `place` for the defaults.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import daemons
from certificates import make_certificates
from control_plane import api_ready, start_control_plane
from images import build_images, image_names, load_images, start_docker
from network import dns_objects, make_bridge, remove, start_services
from node import remove_pods, start_containerd, start_kubelet
from object_store import credentials, start_object_store
from place import NODE, PORTS, S3_REGION, Place, SetupError, here, say
from programs import build_programs, install_packages
from remains import forget_made, remember_absent, remove_remains

NAMESPACES = ("podium-test",)
"""Made at the start; Pod Security `restricted` is enforced in them. Tests make more."""


def build(place: Place, *, images: bool) -> None:
    """Install and build what the cluster consists of, without starting it: programs compile while images download."""
    _require_machine()
    install_packages()
    with ThreadPoolExecutor(1) as pool:
        programs = pool.submit(build_programs, place)
        if images:
            mine = daemons.pid_of(place, "dockerd") is None
            _make_state(place)
            start_docker(place)
            build_images(place)
            if mine:
                daemons.stop(place, "dockerd")
        programs.result()


def up(place: Place, *, images: bool) -> None:
    """Start what does not run, until the node is ready and the images are loaded."""
    began = time.monotonic()
    _require_free_ports(place)
    build(place, images=images)
    _make_state(place)
    make_bridge(place)
    pki = make_certificates(place)
    start_control_plane(place, pki)
    start_object_store(place)
    start_containerd(place)
    start_kubelet(place, pki)
    start_services(place, pki)
    daemons.wait(place, "the node is ready", lambda: node_ready(place), daemon="kubelet", seconds=120)
    give_gpus(place)
    namespaces = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
        for name in NAMESPACES
    ]
    kubectl(place, "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List",
                                                         "items": [*namespaces, *dns_objects()]}))  # fmt: skip
    write_environment(place)
    say(f"the node is ready after {time.monotonic() - began:.0f} s")
    if images:
        start_docker(place)
        load_images(place, image_names())
    say(f"up: source {place.state}/env")


def down(place: Place) -> None:
    """Stop everything and leave nothing behind but the cache."""
    if not place.state.exists():
        return
    say("stopping")
    for name in ("kubelet", "kube-scheduler", "kube-controller-manager", "coredns", "kube-proxy"):
        daemons.stop(place, name)
    if daemons.pid_of(place, "containerd") is not None:
        remove_pods(place)
    for name in ("containerd", "dockerd", "kube-apiserver", "etcd", "versitygw", *daemons.known(place)):
        daemons.stop(place, name)
    remove_remains(place)
    remove(place)
    forget_made(place)
    shutil.rmtree(place.state)
    say("down")


def restart(place: Place, name: str, *, kill: bool) -> None:
    """Stop a daemon and start it as it was; wait until it serves."""
    daemons.stop(place, name, kill=kill)
    daemons.start_again(place, name)
    daemons.wait(place, "a ready API server", lambda: api_ready(place), daemon="kube-apiserver")
    if name == "kubelet":
        daemons.wait(place, "the node is ready", lambda: node_ready(place), daemon="kubelet")
        give_gpus(place)


def kubectl(place: Place, *arguments: str, stdin: str | None = None) -> str:
    """What kubectl prints."""
    argv = [place.program("kubectl"), "--kubeconfig", str(place.kubeconfig), *arguments]
    return daemons.output_of(argv, stdin=stdin)


def node_ready(place: Place) -> bool:
    """Whether the node takes pods."""
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    argv = [place.program("kubectl"), "--kubeconfig", str(place.kubeconfig), "get", "node", NODE, "-o"]
    return subprocess.run([*argv, f"jsonpath={path}"], capture_output=True, text=True).stdout == "True"


def give_gpus(place: Place) -> None:
    """Give the node GPUs that the scheduler counts and nobody can touch."""
    patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(place.gpus)}]
    kubectl(place, "patch", "node", NODE, "--subresource=status", "--type=json", "-p", json.dumps(patch))


def write_environment(place: Place) -> None:
    """The shell's variables by which tests and people reach the cluster."""
    key, secret = credentials(place)
    values = {
        "KUBECONFIG": str(place.kubeconfig),
        "PODIUM_CLUSTER_DIR": str(place.state),
        "PODIUM_CLUSTER_CACHE": str(place.cache),
        "PODIUM_TEST_S3": place.s3_endpoint,
        "AWS_ENDPOINT_URL": place.s3_endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": S3_REGION,
        "CONTAINERD_ADDRESS": str(place.containerd_socket),
        "CONTAINERD_NAMESPACE": "k8s.io",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f'export PATH={shlex.quote(str(place.bin))}:"$PATH"')
    file = place.state / "env"
    file.touch(mode=0o600)
    file.write_text("\n".join([*lines, ""]))


def _make_state(place: Place) -> None:
    place.state.mkdir(parents=True, exist_ok=True)
    place.state.chmod(0o700)
    remember_absent(place)


def _require_machine() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise SetupError("the test cluster needs root on Linux (Debian 12)")


def _require_free_ports(place: Place) -> None:
    if any(daemons.pid_of(place, name) is not None for name in daemons.known(place)):
        return
    listening = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as lines:
            rows = [line.split() for line in lines][1:]
        listening |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    taken = sorted(listening & PORTS.keys())
    if taken:
        which = ", ".join(f"{port} ({PORTS[port]})" for port in taken)
        raise SetupError(f"the test cluster needs ports that are taken here: {which}: is another cluster running?")


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """One command at a time."""
    place.cache.mkdir(parents=True, exist_ok=True)
    with (place.cache / "command.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run a command. Exit code 1 and one sentence where it can't be done."""
    parser = argparse.ArgumentParser(description="the test cluster of this machine")
    parser.add_argument("command", choices=["build", "up", "load", "down", "status", "restart", "stop", "start"])
    parser.add_argument("daemon", nargs="?", help="for restart, stop and start")
    parser.add_argument("--no-images", action="store_true", help="leave the project's images alone")
    parser.add_argument("--kill", action="store_true", help="stop by SIGKILL")
    given = parser.parse_args()
    try:
        place = here()
        if given.command == "status":
            for name in daemons.known(place):
                print(f"{name}: {daemons.pid_of(place, name) or 'ended'}")
            return 0
        with _alone(place):
            if given.command == "build":
                build(place, images=not given.no_images)
            elif given.command == "up":
                up(place, images=not given.no_images)
            elif given.command == "load":
                load_images(place, image_names())
            elif given.command == "down":
                down(place)
            elif given.command == "restart":
                restart(place, given.daemon, kill=given.kill)
            elif given.command == "stop":
                daemons.stop(place, given.daemon, kill=given.kill)
            else:
                daemons.start_again(place, given.daemon)
    except SetupError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
