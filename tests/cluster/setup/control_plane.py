"""etcd, the API server, the controllers and the scheduler, as processes of this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import daemons
from place import API_PORT, HOST, SERVICES, Place, say


def start_control_plane(place: Place, pki: Path) -> None:
    """Start what does not run, and wait until the API server is ready."""
    say("starting etcd and the control plane")
    daemons.start(
        place,
        "etcd",
        [
            place.program("etcd"),
            f"--data-dir={place.state}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
        ],
    )
    daemons.start(
        place,
        "kube-apiserver",
        [
            place.program("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            f"--advertise-address={HOST}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/accounts.key",
            f"--service-account-signing-key-file={pki}/accounts.key",
            f"--kubelet-client-certificate={pki}/apiserver-to-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-to-kubelet.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--feature-gates=WatchList=false",  # etcd 3.4 stalls such a watch for 40 to 60 s
            "--enable-admission-plugins=NodeRestriction",
        ],
    )
    daemons.wait(place, "a ready API server", lambda: api_ready(place), daemon="kube-apiserver")
    daemons.start(
        place,
        "kube-controller-manager",
        [
            place.program("kube-controller-manager"),
            f"--kubeconfig={pki}/controller-manager.kubeconfig",
            "--use-service-account-credentials",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/accounts.key",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    )
    daemons.start(
        place,
        "kube-scheduler",
        [
            place.program("kube-scheduler"),
            f"--kubeconfig={pki}/scheduler.kubeconfig",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    )


def api_ready(place: Place) -> bool:
    """Whether the API server says that it is ready."""
    argv = [place.program("kubectl"), "--kubeconfig", str(place.kubeconfig), "get", "--raw=/readyz"]
    return subprocess.run([*argv, "--request-timeout=5s"], capture_output=True).returncode == 0
