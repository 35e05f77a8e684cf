"""The one node: containerd and the kubelet."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path

import daemons
from place import DNS_SERVICE, HOST, NODE, Place, say

PAUSE = "podium-test/pause:1"
KUBELET_ROOT = "kubelet"


def ctr(place: Place, *arguments: str) -> list[str]:
    """A command of containerd's own client, in the kubelet's namespace."""
    return [place.program("ctr"), "-a", str(place.containerd_socket), "-n", "k8s.io", *arguments]


def start_containerd(place: Place) -> None:
    """containerd with an own root, state and socket, and the pause image."""
    say("starting containerd")
    config = place.state / "containerd.toml"
    config.write_text(
        f"""\
version = 2
root = "{place.containerd_root}"
state = "{place.containerd_state}"
oom_score = 0
[grpc]
  address = "{place.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{place.state}/cni"
"""
    )
    daemons.start(place, "containerd", [place.program("containerd"), "--config", str(config)])
    daemons.wait(
        place,
        "containerd answers",
        lambda: subprocess.run(ctr(place, "version"), capture_output=True).returncode == 0,
        daemon="containerd",
    )
    image = subprocess.run(ctr(place, "images", "import", "-"), input=_pause_image(place), capture_output=True)
    if image.returncode:
        raise daemons.SetupError(f"containerd can't import the pause image: {image.stderr.decode(errors='replace')}")


def start_kubelet(place: Place, pki: Path) -> None:
    """The kubelet, on the cgroups and the swap that this machine has."""
    say("starting the kubelet")
    root = place.state / KUBELET_ROOT
    root.mkdir(exist_ok=True)
    resolv = place.state / "resolv.conf"
    resolv.write_text(f"nameserver {HOST}\n")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": HOST,
        "authentication": {"x509": {"clientCAFile": f"{pki}/ca.crt"}, "anonymous": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": f"{pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet-server.key",
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{place.containerd_socket}",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolv),
        "podLogsDir": f"{place.state}/pod-logs",
        # Small but positive: a test machine's disk and memory are other people's too.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
        "maxPods": 200,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "shutdownGracePeriod": "0s",
    }
    file = place.state / "kubelet.json"
    file.write_text(json.dumps(config, indent=1))
    daemons.start(
        place,
        "kubelet",
        [
            place.program("kubelet"),
            f"--config={file}",
            f"--kubeconfig={pki}/kubelet.kubeconfig",
            f"--root-dir={root}",
            f"--hostname-override={NODE}",
            f"--node-ip={HOST}",
        ],
    )


def remove_pods(place: Place) -> None:
    """End every container that is left, by force: the kubelet is gone, and nobody else will."""
    listed = subprocess.run(ctr(place, "tasks", "ls", "-q"), capture_output=True, text=True).stdout.split()
    for task in listed:
        subprocess.run(ctr(place, "tasks", "kill", "-s", "SIGKILL", task), capture_output=True)
    for task in listed:
        subprocess.run(ctr(place, "tasks", "rm", "-f", task), capture_output=True)
    left = subprocess.run(ctr(place, "containers", "ls", "-q"), capture_output=True, text=True).stdout.split()
    if left:
        subprocess.run(ctr(place, "containers", "rm", *left), capture_output=True)


def _pause_image(place: Place) -> bytes:
    """An image in docker's archive format with one static program."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "pause", (place.bin / "pause").read_bytes(), 0o755)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer.getvalue()).hexdigest()}"]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "config.json", config)
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return archive.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
