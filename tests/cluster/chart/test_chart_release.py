"""A release's life: installed, tested, upgraded, rolled back, gone."""

import json
import time
import urllib.request

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


@pytest.mark.core
def test_an_install_is_ready_and_its_notes_say_the_next_command_and_what_uninstall_leaves(installed):
    print(f"helm install, to MLflow ready and studies uploaded: {installed.ready_seconds:.1f} s")
    assert installed.ready_seconds < 400, "60 s on a machine that does nothing else"
    notes = installed.helm("get", "notes", installed.name)
    assert f"helm test {installed.name} --namespace {installed.namespace}" in notes
    assert "podium submit param-allocation" in notes
    assert "What `helm uninstall` leaves" in notes
    assert "pipelines that were uploaded to Kubeflow" in notes
    assert installed.values["store"]["uri"] in notes
    assert "LEFT OUT" not in notes


@pytest.mark.core
def test_helm_test_passes(installed):
    said = installed.helm("test", installed.name, "--timeout", "600s")
    assert said.count("Phase:          Succeeded") == 2
    assert "Phase:          Failed" not in said


def test_every_pod_of_the_release_is_under_pod_security_restricted(installed, cluster):
    for namespace in (installed.namespace, installed.runner):
        labels = json.loads(cluster.kubectl("get", "namespace", namespace, "-o", "json"))["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = json.loads(
        cluster.kubectl(
            "-n", installed.namespace, "get", "pods", "-l", "app.kubernetes.io/component=mlflow", "-o", "json"
        )
    )["items"]
    assert pods
    for container in [*pods[0]["spec"]["containers"], *pods[0]["spec"]["initContainers"]]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"]


@pytest.mark.core
def test_no_password_is_in_what_helm_keeps_or_the_server_says(installed, cluster, postgres):
    password = "a:p@ssword"
    shown = installed.helm("get", "all", installed.name)
    shown += cluster.kubectl(
        "-n", installed.namespace, "logs", f"deployment/{installed.name}-podium-mlflow", "--all-containers"
    )
    for secret in (password, "a%3Ap%40ssword", cluster.secret_key):
        assert secret not in shown


def lasting(objects):
    """Without what controllers make and replace."""
    return {name for name in objects if not name.startswith(("pod/", "job.", "replicaset.", "endpointslice."))}


def scraped(release):
    """Metrics of one server."""
    label = "app.kubernetes.io/component=mlflow"
    ask = [
        "get",
        "pods",
        "-l",
        label,
        "--field-selector",
        "status.phase=Running",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ]
    address = release.cluster.kubectl("-n", release.namespace, *ask)
    with urllib.request.urlopen(f"http://{address}:5000/metrics", timeout=30) as answer:
        return answer.read().decode()


def test_upgrade_rollback_and_uninstall_change_what_they_say_and_leave_nothing(make_release, cluster):
    release = make_release("life")
    before = release.objects()
    assert not before
    release.install()
    first = release.objects()

    notes = release.upgrade(
        {
            "trials": {"parallel": 3, "priorityClass": "screening"},
            "priorityClasses": [{"name": "screening", "value": -5}],
            "mlflow": {"replicas": 2, "serviceMonitor": {"enabled": True}},
            "networkPolicy": {"enabled": True},
            "kueue": {"enabled": True, "quotas": {"cpu": {"cpu": 4, "memory": "8Gi"}}},
        }
    )
    assert "LEFT OUT: kueue.enabled is true, but this cluster has no kueue.x-k8s.io" in notes
    assert "LEFT OUT: mlflow.serviceMonitor.enabled is true, but this cluster has no monitoring.coreos.com/v1" in notes
    assert "mlflow_exporter_info" in scraped(release), "as Prometheus asks: by a pod's address"
    assert "parallel: 3" in release.config["PODIUM_JOBS"]
    assert f"priority_class: {release.namespace}-life-podium-screening" in release.config["PODIUM_JOBS"]
    assert "queue:" not in release.config["PODIUM_JOBS"], "no queue without Kueue: Jobs would wait for ever"
    assert cluster.kubectl("get", "priorityclass", f"{release.namespace}-life-podium-screening", "-o", "name")
    deployment = json.loads(
        cluster.kubectl("-n", release.namespace, "get", "deployment", "life-podium-mlflow", "-o", "json")
    )
    assert deployment["status"]["readyReplicas"] == 2
    grown = release.objects()
    assert {name.split("/")[0] for name in grown - first} >= {
        "poddisruptionbudget.policy",
        "networkpolicy.networking.k8s.io",
        "priorityclass.scheduling.k8s.io",
    }

    release.helm("rollback", release.name, "1", "--wait", "--timeout", "600s")
    assert lasting(release.objects()) == lasting(first)
    assert "parallel" not in release.config["PODIUM_JOBS"]

    release.helm("test", release.name, "--timeout", "600s")
    release.uninstall()
    deadline = time.monotonic() + 120  # what the chart's objects own goes after them
    while release.objects() and time.monotonic() < deadline:
        time.sleep(1)
    assert release.objects() == set()
    assert release.kubeflow("stand-in/state")["pipelines"], "as NOTES says, what was uploaded stays"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mlflow": {"replcas": 2}}, "at '/mlflow': additional properties 'replcas' not allowed"),
        ({"store": {"uri": "gs://bucket"}}, "at '/store/uri'"),
        ({"mlflow": {"externalUri": "http://elsewhere"}}, "mlflow.externalUri: is for an MLflow that is already there"),
    ],
    ids=["typo", "store", "contradiction"],
)
def test_a_wrong_value_is_refused_with_its_name_and_changes_nothing(installed, changes, said):
    before = installed.helm("history", installed.name, "--output", "json")
    with pytest.raises(AssertionError) as error:
        installed.upgrade(changes)
    assert said in str(error.value)
    assert installed.helm("history", installed.name, "--output", "json") == before
