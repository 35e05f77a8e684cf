"""The images in pods as restricted as a cluster makes them: the self-check passes, nothing leads back to a builder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

SELFCHECK = ["python", "/opt/podium/share/selfcheck.py"]
SCRATCH = {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}
READ_ONLY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@pytest.fixture(params=["steps", "trainer"])
def image(request, cluster):
    return cluster.steps_image if request.param == "steps" else cluster.trainer_image


def read_only(container):
    """A container with a read-only root and one scratch volume, and the pod's part of it."""
    mounted = {**container, "securityContext": READ_ONLY, "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}]}
    return mounted, {"volumes": [SCRATCH]}


def test_the_self_check_passes_under_a_read_only_root(cluster, namespace, run_pod, image):
    ended = run_pod(namespace, *read_only({"image": image, "command": SELFCHECK}), 300)
    report = json.loads(ended.log[ended.log.index("{") :])
    print(f"{image}: {report['seconds']}")  # figures for RESULTS.md
    assert report["problems"] == {}
    assert ended.code == 0
    assert report["read_only_root"]
    assert report["image"] == image
    assert ("torch.compile" in report["seconds"]) == (image == cluster.trainer_image)


def test_nothing_but_the_scratch_can_be_written_even_where_the_root_is_not_read_only(namespace, run_pod, image):
    # Kubeflow can't set a read-only root for its steps: the user's own rights must do.
    code = (
        "import os, sys\n"
        "found = []\n"
        "library = os.path.dirname(os.__file__)\n"
        "for root in ('/', '/opt/podium', '/etc', '/usr', '/home', '/root', sys.prefix, library):\n"
        "    try:\n"
        "        open(os.path.join(root, 'written'), 'w').close()\n"
        "        found.append(root)\n"
        "    except OSError:\n"
        "        pass\n"
        "open('/tmp/written', 'w').close()\n"
        "print(os.getuid(), os.getgid(), found)\n"
    )
    ended = run_pod(namespace, {"image": image, "command": ["python", "-c", code]})
    assert ended.log.strip() == "10001 10001 []"


def test_a_pod_that_names_no_user_runs_as_the_images_own(cluster, namespace, run_pod, image):
    # Under `restricted` the kubelet refuses an image whose user is root or has a name instead of a number.
    spec = {"securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}
    ended = run_pod(namespace, {"image": image, "command": ["sh", "-c", "id -u; mktemp -d"]}, spec)
    assert ended.code == 0, ended.log
    assert re.fullmatch(r"10001\n/tmp/tmp\.\w+", ended.log.strip())


def test_the_command_line_answers_without_a_home_or_a_writable_root(cluster, namespace, run_pod, image):
    ended = run_pod(namespace, *read_only({"image": image, "command": ["podium", "--version"]}))
    assert ended.code == 0, ended.log
    assert cluster.version in ended.log


def test_nothing_that_the_build_was_lent_is_left_in_files_or_history(namespace, run_pod, image):
    look = "find /etc/pip.conf /etc/uv /root/.config /var/cache/uv /var/lib/apt/lists -type f 2> /dev/null"
    look += "; ls /run/secrets | grep -v kubernetes.io"
    for host in sorted(builders_hosts()):
        look += f"; grep -rlFs -e {host} /etc /var /usr/local /root /home /opt/podium/share"
        look += " /opt/podium/lib/python3*/site-packages/*.dist-info"
    ended = run_pod(namespace, {"image": image, "command": ["sh", "-c", f"{look}; true"]})
    assert ended.log.strip() == ""
    configuration = image_configuration(image)
    assert not [host for host in builders_hosts() if host in configuration]
    ours = [each["created_by"] for each in json.loads(configuration)["history"] if "podium" in str(each)]
    assert ours
    assert not [line for line in ours if "://" in line]


def test_labels_say_what_the_image_is(cluster, image):
    labels = json.loads(image_configuration(image))["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == cluster.version
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.title"] in ("Podium steps", "Podium trainer")


def builders_hosts() -> set[str]:
    """Hosts of this machine's own that pip or apt fetch from; public ones that every machine has are none of them."""
    texts = [os.environ.get("PIP_INDEX_URL", "")]
    for name in ("index-url", "extra-index-url", "find-links"):
        command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
        texts.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    sources = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
    texts.extend(file.read_text() for file in sources if file.exists())
    found = {host for text in texts for host in re.findall(r"^[^#\n]*?https?://(?:[^@/\s]*@)?([^/\s:]+)", text, re.M)}
    return {host for host in found if not host.endswith(public_domains())}


def public_domains() -> tuple[str, ...]:
    """Domains that every machine's tools know by themselves: the distribution's, and pip's own index."""
    release = Path("/etc/os-release").read_text()
    distribution = re.search(r'^HOME_URL="https?://(?:www\.)?([^/"]+)', release, re.M)
    default = [sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.netloc)"]
    index = subprocess.run(default, capture_output=True, text=True, check=False).stdout.strip()
    return tuple(filter(None, (distribution[1] if distribution else "", index)))


def image_configuration(image: str) -> str:
    """An image's configuration with its history, as JSON, read from the node's containerd."""
    if not (shutil.which("ctr") and os.environ.get("CONTAINERD_ADDRESS")):
        pytest.skip("the node's containerd can't be reached from here")

    def ctr(*arguments: str) -> str:
        return subprocess.run(["ctr", *arguments], capture_output=True, text=True, check=True).stdout

    listed = ctr("images", "ls", f"name==docker.io/{image}").splitlines()[1].split()
    manifest = json.loads(ctr("content", "get", next(word for word in listed if word.startswith("sha256:"))))
    return ctr("content", "get", manifest["config"]["digest"])
