"""One authority, and a certificate for everyone who talks to the API server."""

from __future__ import annotations

import json
from pathlib import Path

from daemons import output_of
from place import API_PORT, API_SERVICE, HOST, NODE, Place

CLIENTS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "apiserver-to-kubelet": ("kube-apiserver", "system:masters"),
}
"""Name to the user and the group that a certificate stands for."""


def make_certificates(place: Place) -> Path:
    """Make what is missing. Returns the folder."""
    folder = place.state / "pki"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "ca.crt").exists():
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                 "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.crt", "-subj", "/CN=podium-test")  # fmt: skip
    if not (folder / "accounts.key").exists():
        _openssl("genrsa", "-out", f"{folder}/accounts.key", "2048")
    names = ["localhost", NODE, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    sans = [*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in ("127.0.0.1", HOST, API_SERVICE))]
    _certificate(folder, "apiserver", "/CN=kube-apiserver", ",".join(sans))
    _certificate(folder, "kubelet-server", f"/CN={NODE}", f"DNS:{NODE},IP:{HOST},IP:127.0.0.1")
    for name, (user, group) in CLIENTS.items():
        _certificate(folder, name, (f"/O={group}" if group else "") + f"/CN={user}", "")
        _kubeconfig(place, folder, name)
    place.kubeconfig.write_text((folder / "admin.kubeconfig").read_text())
    place.kubeconfig.chmod(0o600)
    return folder


def _openssl(*arguments: str) -> None:
    output_of(["openssl", *arguments])


def _certificate(folder: Path, name: str, subject: str, sans: str) -> None:
    crt, key, csr, ext = (folder / f"{name}.{end}" for end in ("crt", "key", "csr", "ext"))
    if crt.exists():
        return
    _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", str(key), "-out", str(csr), "-subj", subject)  # fmt: skip
    usage = "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n"
    ext.write_text(usage + (f"subjectAltName={sans}\n" if sans else ""))
    _openssl("x509", "-req", "-in", str(csr), "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key",
             "-CAcreateserial", "-days", "30", "-extfile", str(ext), "-out", str(crt))  # fmt: skip


def _kubeconfig(place: Place, folder: Path, name: str) -> None:
    server = f"https://{HOST}:{API_PORT}"
    user = {"client-certificate": f"{folder}/{name}.crt", "client-key": f"{folder}/{name}.key"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": NODE,
        "clusters": [{"name": NODE, "cluster": {"server": server, "certificate-authority": f"{folder}/ca.crt"}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": NODE, "context": {"cluster": NODE, "user": name, "namespace": "default"}}],
    }
    (folder / f"{name}.kubeconfig").write_text(json.dumps(config, indent=1))
