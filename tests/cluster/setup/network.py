"""The pods' bridge, services and names; and how all of it is taken away again."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import daemons
from place import BRIDGE, DNS_SERVICE, HOST, NODE, PODS, Place, say

SYSCTLS = ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/bridge/bridge-nf-call-iptables")
"""Settings of this machine that a cluster changes. They are put back."""
COREFILE = f"""\
cluster.local:53 10.in-addr.arpa:53 {{
    bind {HOST}
    errors
    ready {HOST}:8181
    cache 5
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig KUBECONFIG
    }}
}}
.:53 {{
    bind {HOST}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
"""Names outside of the cluster don't exist: a test that needs one would work on one machine and not on the next."""


def make_bridge(place: Place) -> None:
    """The bridge, made before the first pod because the API server and S3 listen on its address."""
    saved = place.state / "sysctls.json"
    if not saved.exists():
        values = {name: _sysctl(name).read_text().strip() for name in SYSCTLS if _sysctl(name).exists()}
        saved.write_text(json.dumps(values))
    if not _has_bridge():
        daemons.output_of(["ip", "link", "add", BRIDGE, "type", "bridge"])
        daemons.output_of(["ip", "address", "add", f"{HOST}/24", "dev", BRIDGE])
    daemons.output_of(["ip", "link", "set", BRIDGE, "up"])
    _sysctl("net/ipv4/ip_forward").write_text("1")
    folder = place.state / "cni"
    folder.mkdir(exist_ok=True)
    plugins = [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": f"{place.state}/addresses",
                "ranges": [[{"subnet": PODS, "gateway": HOST}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    network = {"cniVersion": "0.4.0", "name": NODE, "plugins": plugins}
    (folder / "10-podium-test.conflist").write_text(json.dumps(network, indent=1))


def start_services(place: Place, pki: Path) -> None:
    """kube-proxy for services and CoreDNS for their names."""
    say("starting kube-proxy and CoreDNS")
    daemons.start(
        place,
        "kube-proxy",
        [
            place.program("kube-proxy"),
            f"--kubeconfig={pki}/proxy.kubeconfig",
            "--proxy-mode=iptables",
            "--conntrack-max-per-core=0",
            "--masquerade-all",  # else the answer of a pod on the same bridge goes past the translation
            f"--hostname-override={NODE}",
            "--metrics-bind-address=127.0.0.1:10249",
        ],
    )
    corefile = place.state / "Corefile"
    corefile.write_text(COREFILE.replace("KUBECONFIG", f"{pki}/admin.kubeconfig"))
    daemons.start(place, "coredns", [place.program("dns"), "-conf", str(corefile)])
    daemons.wait(place, "names resolve", _names_resolve, daemon="coredns")


def _names_resolve() -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:8181/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def dns_objects() -> list[dict[str, object]]:
    """The service of DNS, which has no pods: its endpoint is the process on the bridge's address."""
    ports = [{"name": name.lower(), "port": 53, "protocol": name} for name in ("UDP", "TCP")]
    place = {"name": "kube-dns", "namespace": "kube-system"}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"clusterIP": DNS_SERVICE, "ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**place, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
        },
    ]


def remove(place: Place) -> None:
    """Take away the bridge and every rule of kube-proxy, kubelet and the CNI plugins, and restore the settings."""
    for tool in ("iptables", "ip6tables"):
        for table in ("nat", "filter", "mangle", "raw"):
            _remove_chains(tool, table)
    if _has_bridge():
        daemons.output_of(["ip", "link", "delete", BRIDGE])
    saved = place.state / "sysctls.json"
    if saved.exists():
        for name, value in json.loads(saved.read_text()).items():
            _sysctl(name).write_text(value)


def _remove_chains(tool: str, table: str) -> None:
    listed = subprocess.run([tool, "-w", "-t", table, "-S"], capture_output=True, text=True)
    ours = re.compile(r"(KUBE|CNI)-[\w-]+")
    lines = listed.stdout.splitlines()
    chains = [line.split()[1] for line in lines if line.startswith("-N ") and ours.fullmatch(line.split()[1])]
    if not chains:
        return
    script = [f"*{table}"]
    script += [line.replace("-A ", "-D ", 1) for line in lines if line.startswith("-A ") and _jumps(line, chains)]
    script += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains] + ["COMMIT", ""]
    daemons.output_of([f"{tool}-restore", "-w", "--noflush"], stdin="\n".join(script))


def _jumps(rule: str, chains: list[str]) -> bool:
    words = rule.split()
    return words[1] not in chains and any(word in chains for word in words[2:])


def _has_bridge() -> bool:
    return subprocess.run(["ip", "link", "show", BRIDGE], capture_output=True).returncode == 0


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name
