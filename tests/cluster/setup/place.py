"""Where the test cluster lives on this machine, and its addresses."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]

NODE = "podium-test"
BRIDGE = "podium-test0"
HOST = "10.244.0.1"
"""The bridge's own address: the machine as pods see it. API server, DNS and S3 listen there."""
PODS = "10.244.0.0/24"
SERVICES = "10.96.0.0/16"
API_SERVICE, DNS_SERVICE = "10.96.0.1", "10.96.0.10"
API_PORT, S3_PORT = 6443, 7171
PORTS = {
    6443: "kube-apiserver",
    2379: "etcd",
    2380: "etcd",
    10250: "kubelet",
    10248: "kubelet",
    10256: "kube-proxy",
    10249: "kube-proxy",
    10257: "kube-controller-manager",
    10259: "kube-scheduler",
    7171: "versitygw",
}
S3_REGION = "us-east-1"


class SetupError(Exception):
    """What keeps the cluster from starting, in one sentence."""


def say(text: str) -> None:
    """A line of progress."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Place:
    """The cache of programs and images, which outlives the cluster, and the folder of the running one."""

    cache: Path
    state: Path
    gpus: int = 8
    environment: dict[str, str] = field(default_factory=dict)

    @cached_property
    def bin(self) -> Path:
        """The programs built for this version."""
        from versions import programs_digest

        return self.cache / f"bin-{programs_digest()}"

    @property
    def kubeconfig(self) -> Path:
        """For `system:masters`."""
        return self.state / "kubeconfig"

    @property
    def containerd_root(self) -> Path:
        """Images, kept between clusters."""
        return self.cache / "containerd"

    @property
    def containerd_state(self) -> Path:
        """What containerd mounts."""
        return self.state / "containerd"

    @property
    def containerd_socket(self) -> Path:
        """For ctr and the kubelet."""
        return self.containerd_state / "containerd.sock"

    @property
    def docker_socket(self) -> Path:
        """The engine that builds images."""
        return self.state / "docker" / "docker.sock"

    @property
    def docker_host(self) -> str:
        """DOCKER_HOST: the caller's engine, or ours."""
        return os.environ.get("DOCKER_HOST") or f"unix://{self.docker_socket}"

    @property
    def s3_endpoint(self) -> str:
        """Reached from pods and from this machine."""
        return f"http://{HOST}:{S3_PORT}"

    def program(self, name: str) -> str:
        """A program built by us, else one from the system. Debian's before others of the same name."""
        if (self.bin / name).exists():
            return str(self.bin / name)
        found = shutil.which(name, path=f"/usr/bin:/usr/sbin:{os.environ.get('PATH', '')}")
        if found is None:
            raise SetupError(f"the program {name} is missing")
        return found


def here() -> Place:
    """The place that the environment names."""
    cache = os.environ.get("PODIUM_CLUSTER_CACHE") or Path.home() / ".cache" / "podium-cluster"
    state = os.environ.get("PODIUM_CLUSTER_DIR") or CHECKOUT / ".cluster"
    place = Place(Path(cache).resolve(), Path(state).resolve())
    if len(str(place.state)) > 60:  # a socket's path has 108 characters
        raise SetupError(f"{place.state} is too long a path for sockets: set PODIUM_CLUSTER_DIR to a shorter one")
    return place
