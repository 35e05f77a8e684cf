"""What a real API server says of each shape: strict field validation, and Pod Security `restricted`."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.cluster

CHART = Path(__file__).resolve().parents[3] / "charts" / "podium"
SHAPES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_server_accepts_every_object_of_a_shape_under_strict_validation(
    shape, cluster, make_bare_namespace, ci_values
):
    namespace = make_bare_namespace()
    argv = ["helm", "--kubeconfig", cluster.kubeconfig, "template", "rel", str(CHART), "--namespace", namespace]
    # --validate: the cluster's own API versions decide what is left out
    done = subprocess.run(
        [*argv, "--values", str(CHART / "ci" / f"{shape}.yaml"), "--validate"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    for runner in ci_values[shape].get("runners", [{"serviceAccount": "pipeline-runner"}]):
        account = {"kind": "ServiceAccount", "metadata": {"name": runner["serviceAccount"]}}
        cluster.apply({"apiVersion": "v1", **account}, namespace=namespace)
    for each in objects:
        if "namespace" in each["metadata"]:
            each["metadata"]["namespace"] = namespace  # the shape's own are not on this cluster
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    apply = ["kubectl", "--kubeconfig", cluster.kubeconfig, "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(apply, input=listed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "would violate PodSecurity" not in done.stderr
    assert len(done.stdout.splitlines()) == len(objects)
    print(f"{shape}: {len(objects)} objects accepted")


def test_the_servers_validation_is_strict(cluster):
    """So that the test above can fail."""
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}}
    apply = ["kubectl", "--kubeconfig", cluster.kubeconfig]
    apply += ["apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(apply, input=json.dumps(wrong), capture_output=True, text=True)
    assert done.returncode != 0
    assert 'unknown field "dta"' in done.stderr
