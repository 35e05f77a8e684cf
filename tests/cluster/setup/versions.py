"""What the test cluster consists of. The go.mod and go.sum files pin the Go programs; this names what is built."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

GO_MODULES = [Path(__file__).parent / "go", Path(__file__).parent / "go-kwok"]

KUBERNETES = "1.34.4"
HELM = "3.19.4"

PROGRAMS: list[dict[str, str]] = [
    {
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        "dns": "./dns",
        "pause": "./pause",
        "helm": "helm.sh/helm/v3/cmd/helm",
        "versitygw": "github.com/versity/versitygw/cmd/versitygw",
        "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
        "helm-docs": "github.com/norwoodj/helm-docs/cmd/helm-docs",
    },
    {"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
]
"""For each module, program to Go package."""

LINKER_FLAGS = " ".join(
    [
        "-s -w",
        f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}",
        f"-X k8s.io/component-base/version.gitMajor={KUBERNETES.split('.')[0]}",
        f"-X k8s.io/component-base/version.gitMinor={KUBERNETES.split('.')[1]}",
        f"-X helm.sh/helm/v3/internal/version.version=v{HELM}",
    ]
)

DEBIAN = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "dockerd": "docker.io",
    "docker": "docker.io",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "openssl": "openssl",
    "faketime": "faketime",
    "chromium": "chromium",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/lib/postgresql/15/bin/initdb": "postgresql-15",
}
"""Program (or file) to the package of Debian 12 that brings it. The release pins the versions."""


def programs_digest() -> str:
    """Names a build of the Go programs: another pin, another source or another flag is another build."""
    digest = hashlib.sha256(f"{PROGRAMS} {LINKER_FLAGS}".encode())
    for path in sorted(path for module in GO_MODULES for path in module.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def package_version() -> str:
    """The version of Podium in this checkout, by which its images are tagged."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    return str(project["version"])
