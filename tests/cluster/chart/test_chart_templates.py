"""What each template renders, field by field, without installing anything; kinds that the cluster lacks included."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from podium.components.launch import job_cluster
from podium.components.launch.job_manifest import read_job_settings
from podium.pipelines.installation import load_installation

pytestmark = pytest.mark.cluster

CHART = Path(__file__).resolve().parents[3] / "charts" / "podium"
SHAPES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
TEMPLATES = sorted(
    str(path.relative_to(CHART))
    for path in (CHART / "templates").rglob("*.yaml")
    if path.name != "problems.yaml"  # renders nothing: it refuses
)
KUEUE, PROMETHEUS = "kueue.x-k8s.io/v1beta2", "monitoring.coreos.com/v1"
EVERYTHING = (KUEUE, PROMETHEUS)
LEAST = {"store": {"uri": "s3://podium/experiments"}, "mlflow": {"database": {"existingSecret": "database"}}}


def helm(*arguments, values=None):
    argv = ["helm", *arguments, "--kube-version", "1.34.0"]
    if values is not None:
        argv += ["--values", "-"]
    stdin = None if values is None else json.dumps(values)
    return subprocess.run(argv, input=stdin, capture_output=True, text=True)


def rendered(values, *, apis=(), name="rel", namespace="podium"):
    """Objects with their template: [(template, object)]."""
    flags = [flag for api in apis for flag in ("--api-versions", api)]
    done = helm("template", name, str(CHART), "--namespace", namespace, *flags, values=values)
    assert done.returncode == 0, done.stderr
    found = []
    for document in done.stdout.split("\n---\n"):
        source = document.partition("# Source: podium/")[2].partition("\n")[0]
        content = yaml.safe_load(document)
        if content:
            found.append((source, content))
    return found


def merged(values, changes):
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return result


def objects(changes=None, *, apis=(), shape=None, **where):
    """(kind, namespace, name) → object."""
    values = merged(LEAST if shape is None else shape, changes or {})
    found = [content for _, content in rendered(values, apis=apis, **where)]
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in found]
    assert len(set(keys)) == len(keys), "nothing is rendered twice"
    return dict(zip(keys, found, strict=True))


def of_kind(found, kind):
    return [each for key, each in found.items() if key[0] == kind]


def pods(found):
    """(name, pod's metadata, pod's spec) of everything that becomes a pod."""
    for each in found.values():
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["metadata"], each["spec"]
        elif each["kind"] in ("Deployment", "Job"):
            template = each["spec"]["template"]
            yield each["metadata"]["name"], template["metadata"], template["spec"]
        elif each["kind"] == "CronJob":
            template = each["spec"]["jobTemplate"]["spec"]["template"]
            yield each["metadata"]["name"], template["metadata"], template["spec"]


def environment(container):
    return {each["name"]: each.get("value") for each in container.get("env", [])}


def job_settings(found):
    """What the launcher makes of the rendered configuration."""
    return read_job_settings({"PODIUM_JOBS": found["ConfigMap", "podium", "podium-config"]["data"]["PODIUM_JOBS"]})


@pytest.mark.parametrize("shape", SHAPES)
def test_helm_lint_finds_nothing_in_a_shape(shape):
    done = helm("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / f"{shape}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_helm_lint_finds_nothing_in_the_defaults():
    assert helm("lint", "--strict", str(CHART)).returncode == 0


def test_the_shapes_together_use_every_template(ci_values):
    used = {source for values in ci_values.values() for source, _ in rendered(values, apis=EVERYTHING)}
    assert used == set(TEMPLATES)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pod_is_restricted_and_bounded(ci_values, shape):
    found = objects(shape=ci_values[shape], apis=EVERYTHING)
    assert list(pods(found))
    for name, metadata, spec in pods(found):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert "automountServiceAccountToken" in spec, name
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false", name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"]["memory"], name
            assert container["resources"]["limits"]["memory"], name
            assert environment(container)["HOME"] == "/tmp", name
            assert {"name": "scratch", "mountPath": "/tmp"} in container["volumeMounts"], name
        assert all("emptyDir" not in volume or "sizeLimit" in volume["emptyDir"] for volume in spec["volumes"]), name


def test_labels_and_pull_secrets_are_on_everything(ci_values):
    found = objects({"commonLabels": {"team": "x"}, "images": {"pullSecrets": ["registry"]}}, apis=EVERYTHING)
    for key, each in found.items():
        assert each["metadata"]["labels"]["team"] == "x", key
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "rel", key
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm", key
    for name, _, spec in pods(found):
        assert spec["imagePullSecrets"] == [{"name": "registry"}], name


def test_a_digest_wins_over_a_tag_and_no_user_is_set_where_the_platform_does_it(ci_values):
    found = objects(shape=ci_values["cloud-identity-values"])
    for name, _, spec in pods(found):
        assert spec["containers"][0]["image"].endswith("/podium/python-steps@sha256:" + "0123456789abcdef" * 4), name
        assert "runAsUser" not in spec["securityContext"], name
        assert "fsGroup" not in spec["securityContext"], name


# --- rights


def allowed(rules):
    """Every single thing that the rules allow."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_conductors_role_is_the_launchers_own_least_one(ci_values):
    found = objects(shape=ci_values["kubeflow-profiles-values"])
    for namespace in ("team-a", "team-b"):
        rules = found["Role", namespace, "rel-podium-conductor"]["rules"]
        assert allowed(rules) == allowed(job_cluster.CONDUCTOR_RULES)
        binding = found["RoleBinding", namespace, "rel-podium-conductor"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "default-editor", "namespace": namespace}]
        assert binding["roleRef"]["name"] == "rel-podium-conductor"


def test_the_reapers_role_is_the_launchers_own_least_one():
    found = objects()
    assert allowed(found["Role", "kubeflow", "rel-podium-reaper"]["rules"]) == allowed(job_cluster.REAPER_RULES)
    subjects = found["RoleBinding", "kubeflow", "rel-podium-reaper"]["subjects"]
    assert subjects == [{"kind": "ServiceAccount", "name": "rel-podium-reaper", "namespace": "kubeflow"}]


def test_nothing_is_bound_to_a_cluster_role_and_nothing_reads_secrets(ci_values):
    for values in ci_values.values():
        for key, each in objects(shape=values, apis=EVERYTHING).items():
            assert not key[0].startswith("ClusterRole"), key
            for rule in each.get("rules", []) if key[0] == "Role" else []:
                assert "secrets" not in rule["resources"], key
                assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], key


def test_runners_of_one_namespace_share_its_objects_and_each_is_bound():
    runners = [{"namespace": "a", "serviceAccount": name} for name in ("one", "two")]
    found = objects({"runners": runners})
    assert [each["name"] for each in found["RoleBinding", "a", "rel-podium-conductor"]["subjects"]] == ["one", "two"]


def test_a_runner_is_made_only_where_asked_and_a_trial_has_no_token(ci_values):
    found = objects(shape=ci_values["cloud-identity-values"])
    runner = found["ServiceAccount", "training", "podium-runner"]
    assert runner["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith("podium-runner")
    trial = found["ServiceAccount", "training", "podium-trial"]
    assert trial["automountServiceAccountToken"] is False
    assert trial["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith("podium-trial")
    assert ("ServiceAccount", "kubeflow", "pipeline-runner") not in objects()


def test_a_multi_user_kubeflow_lets_the_upload_touch_pipelines_only(ci_values):
    found = objects(shape=ci_values["kubeflow-profiles-values"])
    role = found["Role", "team-a", "rel-podium-upload"]
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"pipelines", "pipelines/versions"}
    subjects = found["RoleBinding", "team-a", "rel-podium-upload"]["subjects"]
    assert subjects == [{"kind": "ServiceAccount", "name": "rel-podium-upload", "namespace": "podium"}]
    shared = objects({"kfp": {"multiUser": True}})
    assert ("ClusterRole", None, "podium-rel-podium-upload") in shared, "pipelines shared by all belong to no namespace"


# --- configuration


def test_every_namespace_that_runs_something_has_the_same_configuration(ci_values):
    found = objects(shape=ci_values["kubeflow-profiles-values"])
    data = [found["ConfigMap", namespace, "podium-config"]["data"] for namespace in ("team-a", "team-b", "podium")]
    assert data[0] == data[1] == data[2]
    assert data[0]["PODIUM_STORE"] == "s3://podium/experiments"
    assert data[0]["AWS_ENDPOINT_URL"] == "http://minio.storage.svc:9000"
    assert data[0]["PODIUM_MLFLOW_URI"] == data[0]["MLFLOW_TRACKING_URI"] == "http://rel-podium-mlflow.podium.svc:5000"


def test_the_launcher_reads_the_settings_of_jobs(ci_values):
    found = objects(shape=ci_values["gpu-queues-values"], apis=EVERYTHING)
    settings = job_settings(found)
    assert settings.service_account == "podium-trial"
    assert settings.queue == "podium"
    assert settings.priority_class == "podium-rel-podium-screening"
    assert (settings.parallel, settings.cpu, settings.memory, settings.deadline_seconds) == (16, "4", "32Gi", 86400)
    assert settings.labels == {"cost-centre": "research"}
    assert settings.gpu_classes["mi300x"].resource == "amd.com/gpu"
    assert settings.gpu_classes["h100"].node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert settings.gpu_classes["h100"].tolerations[0]["key"] == "nvidia.com/gpu"


def test_without_a_secret_jobs_name_none(ci_values):
    found = objects(shape=ci_values["cloud-identity-values"])
    settings = job_settings(found)
    assert settings.secret is None
    assert settings.image == "123456789012.dkr.ecr.eu-west-1.amazonaws.com/podium/python-trainer:0.1.0-cu128"
    assert settings.image_pull_secrets == ["registry"]
    for name, _, spec in pods(found):
        for container in spec["containers"]:
            assert "AWS_ACCESS_KEY_ID" not in environment(container), name


def test_the_upload_reads_the_installation(ci_values, tmp_path):
    found = objects(shape=ci_values["gpu-queues-values"])
    path = tmp_path / "installation.yaml"
    path.write_text(found["ConfigMap", "podium", "rel-podium-installation"]["data"]["installation.yaml"])
    installation = load_installation(path)
    assert installation.store == "s3://podium/experiments"
    assert installation.launcher == "job"
    assert set(installation.gpu_classes) == {"h100", "mi300x"}


def test_only_known_variables_can_be_added(ci_values):
    data = objects(shape=ci_values["external-mlflow-values"])["ConfigMap", "kubeflow", "podium-config"]["data"]
    assert data["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
    assert data["PODIUM_MLFLOW_URI"] == "https://mlflow.example.com"


# --- MLflow


def server(found):
    spec = found["Deployment", "podium", "rel-podium-mlflow"]["spec"]
    return spec, spec["template"]["spec"]["containers"][0]


def test_mlflow_answers_to_its_names_with_and_without_port_and_to_its_ingress(ci_values):
    _, container = server(objects({"mlflow": {"service": {"port": 8080}}}))
    hosts = environment(container)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for host in ("rel-podium-mlflow", "rel-podium-mlflow.podium", "rel-podium-mlflow.podium.svc"):
        assert {host, f"{host}:8080"} <= set(hosts)
    assert "rel-podium-mlflow.podium.svc.cluster.local:8080" in hosts
    assert {"localhost", "localhost:*"} <= set(hosts), "a port-forward"
    assert "*" not in hosts
    assert "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS" not in environment(container)

    _, container = server(objects(shape=ci_values["cloud-identity-values"]))
    hosts = environment(container)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"mlflow.example.com", "mlflow.example.com:*"} <= set(hosts)
    assert "$(POD_IP):5000" in hosts, "Prometheus asks the pod by its address"
    names = [each["name"] for each in container["env"]]
    assert names.index("POD_IP") < names.index("MLFLOW_SERVER_ALLOWED_HOSTS"), "only what came before is expanded"
    assert environment(container)["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].startswith("https://mlflow.example.com")


def test_mlflow_has_the_database_by_secret_alone_and_hands_artifacts_to_s3():
    for changes in ({}, {"mlflow": {"database": {"host": "db.example", "port": 6432, "sslMode": "require"}}}):
        spec, container = server(objects(changes))
        (migrate,) = spec["template"]["spec"]["initContainers"]
        assert migrate["command"] == ["python", "-m", "podium.components.tracking.migrate"]
        for each in (migrate, container):
            variables = {entry["name"]: entry for entry in each["env"]}
            secret = variables["PGPASSWORD" if changes else "MLFLOW_BACKEND_STORE_URI"]["valueFrom"]["secretKeyRef"]
            assert secret == {"name": "database", "key": "password" if changes else "uri"}
        assert not any("postgresql" in argument for argument in container["args"])
        assert "--no-serve-artifacts" in container["args"]
        assert "--default-artifact-root=s3://podium/experiments/mlflow-artifacts" in container["args"]
    assert variables["PGHOST"]["value"] == "db.example"
    assert variables["PGSSLMODE"]["value"] == "require"
    assert variables["MLFLOW_BACKEND_STORE_URI"]["value"] == "postgresql://", "libpq's variables say the rest"


def test_a_database_that_is_away_restarts_no_server():
    spec, container = server(objects())
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "/health"
    }
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "serviceAccountName" in spec["template"]["spec"]
    assert spec["template"]["spec"]["automountServiceAccountToken"] is False


def test_a_budget_of_disruptions_comes_with_replicas_only():
    assert not of_kind(objects(), "PodDisruptionBudget")
    found = objects({"mlflow": {"replicas": 3, "minAvailable": 2}})
    (budget,) = of_kind(found, "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == 2
    spec, _ = server(found)
    assert spec["replicas"] == 3
    assert budget["spec"]["selector"] == spec["selector"]
    assert spec["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"] == spec["selector"]


def test_the_service_reaches_the_server_and_nothing_else():
    found = objects()
    service = found["Service", "podium", "rel-podium-mlflow"]["spec"]
    assert service["ports"] == [{"name": "http", "port": 5000, "targetPort": "http"}]
    matching = [name for name, metadata, _ in pods(found) if service["selector"].items() <= metadata["labels"].items()]
    assert matching == ["rel-podium-mlflow"]


def test_the_ingress_has_every_host_and_its_certificate(ci_values):
    (ingress,) = of_kind(objects(shape=ci_values["cloud-identity-values"]), "Ingress")
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["mlflow.example.com"]
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "rel-podium-mlflow", "port": {"name": "http"}}
    assert ingress["spec"]["tls"] == [{"secretName": "mlflow-tls", "hosts": ["mlflow.example.com"]}]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert not of_kind(objects(), "Ingress")


def test_a_service_monitor_needs_its_kind_and_a_server_that_shows_metrics(ci_values):
    values = ci_values["cloud-identity-values"]
    assert not of_kind(objects(shape=values), "ServiceMonitor")
    found = objects(shape=values, apis=[PROMETHEUS])
    (monitor,) = of_kind(found, "ServiceMonitor")
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    labels = found["Service", "podium", "rel-podium-mlflow"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert "--expose-prometheus=/tmp/metrics" in server(found)[1]["args"]


def test_with_an_mlflow_that_is_there_none_is_installed(ci_values):
    found = objects(shape=ci_values["external-mlflow-values"])
    assert not [key for key in found if "mlflow" in key[2]]


# --- upload, reaper, queues, network


def test_the_upload_comes_after_install_and_upgrade_with_a_token_for_kubeflow_alone(ci_values):
    found = objects({"kfp": {"namespace": "team-a"}})
    job = found["Job", "podium", "rel-podium-upload"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["command"] == ["podium", "upload"]
    assert container["args"] == ["--all", "--retry-for", "120"]
    variables = environment(container)
    assert variables["KF_PIPELINES_ENDPOINT"] == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert variables["PODIUM_KFP_NAMESPACE"] == "team-a"
    (token,) = [volume for volume in spec["volumes"] if volume["name"] == "kubeflow-token"]
    assert token["projected"]["sources"][0]["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert variables["PODIUM_KFP_TOKEN_FILE"] == f"{mounted['kubeflow-token']}/token"
    assert variables["PODIUM_INSTALLATION"] == f"{mounted['installation']}/installation.yaml"

    job = objects(shape=ci_values["gpu-queues-values"])["Job", "podium", "rel-podium-upload"]
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:2] == ["param-allocation", "/etc/podium/studies/ours.yaml"]


@pytest.mark.parametrize("changes", [{"upload": {"enabled": False}}, {"kfp": {"endpoint": ""}}], ids=str)
def test_nothing_is_uploaded_where_nobody_asked_or_nobody_listens(changes):
    assert not [key for key in objects(changes) if "upload" in key[2]]


def test_the_reaper_looks_in_each_runners_namespace_and_never_twice_at_once(ci_values):
    found = objects(shape=ci_values["kubeflow-profiles-values"])
    for namespace in ("team-a", "team-b"):
        cron = found["CronJob", namespace, "rel-podium-reaper"]["spec"]
        assert cron["schedule"] == "*/10 * * * *"
        assert cron["concurrencyPolicy"] == "Forbid"
        spec = cron["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["command"] == ["python", "-m", "podium.components.launch.reap"]
        assert container["envFrom"] == [{"configMapRef": {"name": "podium-config"}}]
        assert spec["serviceAccountName"] == "rel-podium-reaper"
        assert spec["automountServiceAccountToken"] is True
    assert not [key for key in objects({"reaper": {"enabled": False}}) if "reaper" in key[2]]


def test_two_installs_share_no_name_of_the_cluster(ci_values):
    values = ci_values["gpu-queues-values"]
    mine = objects(shape=values, apis=EVERYTHING)
    theirs = objects(shape=values, apis=EVERYTHING, namespace="others")
    of_cluster = [{key for key in found if key[1] is None} for found in (mine, theirs)]
    assert len(of_cluster[0]) == len(of_cluster[1]) == 6
    assert not of_cluster[0] & of_cluster[1]


def test_priority_classes_are_as_told_and_no_default(ci_values):
    found = objects(shape=ci_values["gpu-queues-values"])
    screening = found["PriorityClass", None, "podium-rel-podium-screening"]
    assert (screening["value"], screening["preemptionPolicy"], screening["globalDefault"]) == (-10, "Never", False)
    proof = found["PriorityClass", None, "podium-rel-podium-proof"]
    assert (proof["value"], proof["description"]) == (100, "Trials of a last stage.")
    own = objects({"trials": {"priorityClass": "of-the-cluster"}})
    assert job_settings(own).priority_class == "of-the-cluster"


@pytest.mark.parametrize(("api", "cohort"), [(KUEUE, "cohortName"), ("kueue.x-k8s.io/v1beta1", "cohort")])
def test_kueue_has_a_flavor_for_each_class_one_queue_and_a_door_in_each_namespace(ci_values, api, cohort):
    found = objects(shape=ci_values["gpu-queues-values"], apis=[api])
    flavor = found["ResourceFlavor", None, "podium-rel-podium-h100"]
    assert flavor["apiVersion"] == api
    assert flavor["spec"]["nodeLabels"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert flavor["spec"]["tolerations"][0]["effect"] == "NoSchedule"
    queue = found["ClusterQueue", None, "podium-rel-podium"]["spec"]
    assert queue[cohort] == "research"
    (group,) = queue["resourceGroups"]
    assert group["coveredResources"] == ["cpu", "memory", "amd.com/gpu", "nvidia.com/gpu"]
    quotas = {
        flavor["name"].rpartition("-")[2]: {each["name"]: each["nominalQuota"] for each in flavor["resources"]}
        for flavor in group["flavors"]
    }
    assert quotas["h100"] == {"cpu": "192", "memory": "1Ti", "amd.com/gpu": 0, "nvidia.com/gpu": 16}
    assert quotas["mi300x"]["amd.com/gpu"] == 8
    assert quotas["mi300x"]["nvidia.com/gpu"] == 0
    assert quotas["cpu"]["nvidia.com/gpu"] == 0
    assert all(list(each) == group["coveredResources"] for each in quotas.values()), "Kueue wants them in order"
    local = found["LocalQueue", "kubeflow", "podium"]
    assert local["spec"] == {"clusterQueue": "podium-rel-podium"}
    namespaces = queue["namespaceSelector"]["matchExpressions"][0]["values"]
    assert namespaces == ["kubeflow"]


def test_without_kueue_no_job_names_a_queue(ci_values):
    found = objects(shape=ci_values["gpu-queues-values"])
    assert not {"ClusterQueue", "LocalQueue", "ResourceFlavor"} & {key[0] for key in found}
    assert job_settings(found).queue is None


def test_network_policies_let_in_runners_and_peers(ci_values):
    found = objects(shape=ci_values["gpu-queues-values"])
    mlflow = found["NetworkPolicy", "podium", "rel-podium-mlflow"]["spec"]
    (rule,) = mlflow["ingress"]
    assert rule["ports"] == [{"port": "http"}]
    allowed = rule["from"][0]["namespaceSelector"]["matchExpressions"][0]
    assert (allowed["key"], allowed["values"]) == ("kubernetes.io/metadata.name", ["kubeflow"])
    assert rule["from"][-1]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress-nginx"}
    assert mlflow["policyTypes"] == ["Ingress", "Egress"]
    assert {"port": 53, "protocol": "UDP"} in mlflow["egress"][0]["ports"]

    trials = found["NetworkPolicy", "kubeflow", "rel-podium-trials"]["spec"]
    labels = {"app.kubernetes.io/name": "podium", "app.kubernetes.io/component": "trial"}
    assert trials["podSelector"] == {"matchLabels": labels}
    assert trials["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels}}]}]
    jobs = found["NetworkPolicy", "kubeflow", "rel-podium-jobs"]["spec"]
    assert jobs["policyTypes"] == ["Ingress"]
    assert "ingress" not in jobs
    assert not of_kind(objects(), "NetworkPolicy")


def test_helm_tests_are_pods_of_that_hook_as_each_runner(ci_values):
    found = objects(shape=ci_values["kubeflow-profiles-values"])
    tests = of_kind(found, "Pod")
    assert all(each["metadata"]["annotations"]["helm.sh/hook"] == "test" for each in tests)
    accounts = {(each["metadata"]["namespace"], each["spec"].get("serviceAccountName")) for each in tests}
    assert {("team-a", "default-editor"), ("team-b", "default-editor"), ("podium", None)} == accounts


# --- refusals

WRONG = {
    "typo": ({"mlflow": {"replcas": 2}}, "at '/mlflow': additional properties 'replcas' not allowed"),
    "typo at the top": ({"mlfow": {}}, "additional properties 'mlfow' not allowed"),
    "typo in a list": ({"runners": [{"namspace": "a", "serviceAccount": "b"}]}, "'namspace' not allowed"),
    "choice": ({"trials": {"launcher": "jobs"}}, "at '/trials/launcher': value must be one of 'job', 'process'"),
    "number": ({"mlflow": {"replicas": 0}}, "at '/mlflow/replicas': minimum: got 0, want 1"),
    "text for a number": ({"mlflow": {"replicas": "2"}}, "at '/mlflow/replicas': got string, want integer"),
    "quantity": ({"trials": {"memory": "8GB"}}, "at '/trials/memory'"),
    "address": ({"s3": {"endpoint": "minio:9000"}}, "at '/s3/endpoint'"),
    "store": ({"store": {"uri": "gs://bucket"}}, "at '/store/uri'"),
    "class": ({"gpuClasses": {"H100": {}}}, "at '/gpuClasses': additional properties 'H100' not allowed"),
    "variable": (
        {"runtime": {"extra": {"PATH": "/"}}},
        "at '/runtime/extra': additional properties 'PATH' not allowed",
    ),
    "no store": ({"store": {"uri": ""}}, "store.uri: is required"),
    "no database": ({"mlflow": {"database": {"existingSecret": ""}}}, "mlflow.database.existingSecret: is required"),
    "two MLflows": ({"mlflow": {"externalUri": "http://m"}}, "mlflow.externalUri: is for an MLflow that is already"),
    "no drain": ({"mlflow": {"replicas": 2, "minAvailable": 2}}, "mlflow.minAvailable: must be less than"),
    "no host": ({"mlflow": {"ingress": {"enabled": True}}}, "mlflow.ingress.hosts: is required"),
    "runner twice": ({"runners": [{"namespace": "a", "serviceAccount": "b"}] * 2}, "runners[1]: is there twice"),
    "runner is the trial": (
        {"runners": [{"namespace": "a", "serviceAccount": "podium-trial"}]},
        "runners[0].serviceAccount: must not be trials.serviceAccount.name",
    ),
    "identity of another's account": (
        {"runners": [{"namespace": "a", "serviceAccount": "b", "annotations": {"x": "y"}}]},
        "runners[0].annotations: only for an account that the chart makes",
    ),
    "reserved class": ({"gpuClasses": {"cpu": {}}}, "gpuClasses.cpu: is the name"),
    "reserved variable": ({"runtime": {"extra": {"PODIUM_STORE": "x"}}}, "runtime.extra.PODIUM_STORE: is set by"),
    "no quota": ({"kueue": {"enabled": True}}, "kueue.quotas: is required"),
    "quota of nothing": (
        {"kueue": {"enabled": True, "quotas": {"h200": {"cpu": 1, "memory": "1Gi"}}}},
        "kueue.quotas.h200: must be cpu or one of gpuClasses (none)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_refused_with_its_name(wrong):
    changes, said = WRONG[wrong]
    done = helm("template", "rel", str(CHART), values=merged(LEAST, changes))
    assert done.returncode != 0
    assert said in done.stderr


def test_all_contradictions_are_told_at_once():
    done = helm("template", "rel", str(CHART), values={"kueue": {"enabled": True}})
    for name in ("store.uri", "mlflow.database.existingSecret", "kueue.quotas"):
        assert f"\n  {name}: is required" in done.stderr


def test_notes_name_what_was_left_out_the_next_command_and_what_stays(ci_values):
    def notes(values, *flags):
        argv = ("install", "rel", str(CHART), "--dry-run=client", "--namespace", "podium", *flags)
        done = subprocess.run(
            ["helm", *argv, "--values", "-"], input=json.dumps(values), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    shown = notes(ci_values["gpu-queues-values"])
    assert "LEFT OUT: kueue.enabled is true, but this cluster has no kueue.x-k8s.io/v1beta1 or v1beta2" in shown
    assert "helm test rel --namespace podium" in shown
    assert "pipelines that were uploaded to Kubeflow" in shown
    shown = notes(ci_values["cloud-identity-values"])
    assert "LEFT OUT: mlflow.serviceMonitor.enabled is true" in shown
    assert "https://mlflow.example.com" in shown
    shown = notes(ci_values["without-kubeflow-values"])
    assert "podium run param-allocation --profile smoke --launcher job" in shown
    assert "LEFT OUT" not in shown
