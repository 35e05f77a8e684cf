"""`podium doctor` against servers that serve, refuse, hang and are not there."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from podium.pipelines.doctor.cluster import Finding, run_checks


class Handler(BaseHTTPRequestHandler):
    """MLflow and a Kubernetes API in one, as far as the doctor asks."""

    def do_GET(self):
        state = self.server.state
        time.sleep(state["delay"])
        path = self.path.partition("?")[0]
        if path == "/version":
            self._send(*state["version"], kind="text/plain")
        elif path.startswith("/api/2.0/mlflow"):
            self._send(200, {"experiments": []})
        elif path == "/api/v1/nodes":
            self._send(*state["nodes"])
        elif path.endswith("/resourcequotas"):
            self._send(200, {"items": state["quotas"]})
        else:
            self._send(404, {"message": "not found"})

    def do_POST(self):
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = body["spec"]["resourceAttributes"]
        state["asked"].append(wanted)
        allowed = wanted["verb"] not in state["forbidden"]
        self._send(201, {"spec": body["spec"], "status": {"allowed": allowed}})

    def _send(self, code, content, kind="application/json"):
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def node(name, gpus, labels=None, taints=()):
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}},
    }


@pytest.fixture
def servers():
    """The stand-in's address and its state."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.state = {
        "delay": 0.0,
        "version": (200, "3.17.0"),
        "nodes": (200, {"items": [node("a", 8, {"gpu": "l40s"}), node("b", 0)]}),
        "quotas": [],
        "asked": [],
        "forbidden": (),
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server.state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def doctor(kfp, servers, podium_cli, tmp_path, monkeypatch):
    """Runs the command with everything set up, in JSON: (exit code, check → its findings)."""
    address, _ = servers
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("PODIUM_MLFLOW_URI", address)
    monkeypatch.delenv("PODIUM_JOBS", raising=False)

    def run(*arguments, host=None):
        store = ["--store", str(tmp_path / "store")]
        done = podium_cli("doctor", *store, "--host", host or kfp.host, "--json", *arguments)
        assert "Traceback" not in done.output
        found = {}
        plain = json.loads(done.stdout)
        for each in plain["checks"]:
            found.setdefault(each["check"], []).append(each)
        assert plain["ok"] == (done.exit_code == 0)
        return done.exit_code, found

    return run


def test_where_everything_serves_it_says_so_and_ends_with_0(doctor, servers):
    code, found = doctor()
    assert code == 0, found
    assert {name: each[0]["status"] for name, each in found.items()} == dict.fromkeys(
        ("Versions", "Images", "Kubeflow", "Store", "MLflow", "Rights", "GPUs", "Quota"), "ok"
    )
    assert "8 × nvidia.com/gpu on 1 of 2 nodes" in found["GPUs"][0]["found"]
    assert found["MLflow"][0]["found"].endswith("version 3.17.0")


def test_every_rule_of_the_conductors_role_is_asked_for_in_the_jobs_namespace(doctor, servers):
    from podium.components.launch.job_cluster import CONDUCTOR_RULES

    doctor("--jobs-namespace", "other")
    wanted = {
        (group, resource, verb)
        for rule in CONDUCTOR_RULES
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    asked = servers[1]["asked"]
    joined = {"/".join(filter(None, (each["resource"], each.get("subresource")))) for each in asked}
    assert {(each["group"], "/".join(filter(None, (each["resource"], each.get("subresource")))), each["verb"])
            for each in asked} == wanted  # fmt: skip
    assert joined == {resource for _, resource, _ in wanted}
    assert {each["namespace"] for each in asked} == {"other"}


def test_a_right_that_is_missing_is_named_with_what_to_do(doctor, servers):
    servers[1]["forbidden"] = ("delete",)
    code, found = doctor()
    (rights,) = found["Rights"]
    assert code == 2
    assert "may not: delete jobs" in rights["found"]
    assert "runners:" in rights["do"]


@pytest.mark.parametrize(
    ("site", "status", "words"),
    [
        ({"node_selector": {"gpu": "l40s"}}, "ok", "8 × nvidia.com/gpu on 1 of 2 nodes"),
        ({"node_selector": {"gpu": "h100"}}, "failed", "no nvidia.com/gpu on the 0 of 2 nodes"),
        ({"resource": "amd.com/gpu"}, "failed", "no amd.com/gpu on the 2 of 2 nodes"),
    ],
)
def test_each_gpu_class_is_looked_for_by_its_selector_and_resource(doctor, tmp_path, site, status, words):
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"gpu_classes": {"l40s": site}}))
    code, found = doctor("--installation", tmp_path / "site.yaml")
    (gpus,) = found["GPUs: l40s"]
    assert (gpus["status"], code) == (status, 2 if status == "failed" else 0)
    assert words in gpus["found"]


@pytest.mark.parametrize(
    ("toleration", "status"),
    [
        (None, "failed"),
        ({"key": "gpu", "operator": "Exists"}, "ok"),
        ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, "ok"),
        ({"key": "gpu", "operator": "Equal", "value": "no"}, "failed"),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, "failed"),
    ],
)
def test_a_node_whose_taint_the_class_does_not_tolerate_does_not_count(doctor, servers, tmp_path, toleration, status):
    taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    servers[1]["nodes"] = (200, {"items": [node("a", 8, taints=[taint])]})
    site = {"gpu_classes": {"l40s": {"tolerations": [toleration] if toleration else []}}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    _, found = doctor("--installation", tmp_path / "site.yaml")
    assert found["GPUs: l40s"][0]["status"] == status


def test_who_may_not_list_nodes_is_told_that_it_does_not_matter(doctor, servers):
    servers[1]["nodes"] = (403, {"message": "nodes is forbidden"})
    code, found = doctor()
    assert (code, found["GPUs"][0]["status"]) == (0, "skipped")


@pytest.mark.parametrize(("used", "status"), [("2", "ok"), ("4", "warning")])
def test_a_quota_that_is_used_up_is_a_warning(doctor, servers, used, status):
    servers[1]["quotas"] = [
        {"status": {"hard": {"requests.nvidia.com/gpu": "4"}, "used": {"requests.nvidia.com/gpu": used}}}
    ]
    code, found = doctor()
    assert (code, found["Quota"][0]["status"]) == (0, status)
    assert f"requests.nvidia.com/gpu {used} of 4" in found["Quota"][0]["found"]


def test_an_mlflow_that_refuses_the_host_is_told_how_to_allow_it(doctor, servers):
    servers[1]["version"] = (403, "Invalid Host header - possible DNS rebinding attack detected")
    code, found = doctor()
    assert code == 2
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" in found["MLflow"][0]["do"]


def test_an_old_mlflow_is_a_warning(doctor, servers):
    servers[1]["version"] = (200, "2.9.2")
    code, found = doctor()
    assert (code, found["MLflow"][0]["status"]) == (0, "warning")


def test_a_server_that_hangs_fails_its_own_check_alone_and_in_time(doctor, servers):
    servers[1]["delay"] = 30.0
    began = time.monotonic()
    code, found = doctor("--seconds", "3")
    assert time.monotonic() - began < 25
    assert code == 2
    assert found["MLflow"][0]["found"] == "no answer within 3 s"
    assert found["Store"][0]["status"] == "ok"


def test_a_kubeflow_that_is_not_there_fails_and_one_that_is_not_set_up_is_skipped(doctor, podium_cli, monkeypatch):
    code, found = doctor(host="http://127.0.0.1:9")
    assert code == 2
    assert "can't be reached" in found["Kubeflow"][0]["found"]
    monkeypatch.delenv("PODIUM_MLFLOW_URI")
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    bare = podium_cli("doctor")
    assert bare.exit_code == 0, bare.output
    assert bare.stdout.count("skipped") == 3
    assert "what to do" in bare.stdout


def test_an_expired_token_of_kubeflow_is_said_in_words(doctor, kfp):
    kfp.state.tokens = ("good",)
    code, found = doctor("--token", "expired")
    assert code == 2
    assert "the token has expired" in found["Kubeflow"][0]["found"]


def test_images_of_another_version_are_a_warning(doctor, tmp_path):
    (tmp_path / "site.yaml").write_text("steps_image: r.example/podium/python-steps:9.9\ntrainer_image: r.example/t\n")
    code, found = doctor("--installation", tmp_path / "site.yaml")
    assert code == 0
    assert [each["status"] for each in found["Images"]] == ["warning", "warning"]
    assert "is not this podium" in found["Images"][0]["found"]
    assert "says no version" in found["Images"][1]["found"]


def test_a_store_that_can_not_be_written_fails_with_the_reason(doctor, tmp_path):
    (tmp_path / "store").write_text("a file")
    code, found = doctor()
    assert code == 2
    assert str(tmp_path / "store") in found["Store"][0]["found"]


def test_a_check_that_breaks_is_a_line_of_the_table():
    def breaks():
        yield Finding("A", "ok", "so far")
        raise RuntimeError("a client's own error\nwith more lines")

    found = run_checks([("A", breaks)], 5)
    assert [(each.status, each.found) for each in found] == [("ok", "so far"), ("failed", "a client's own error")]
