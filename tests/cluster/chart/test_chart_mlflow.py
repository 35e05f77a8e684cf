"""The installed MLflow server: its database is migrated once, and its names are known."""

import json
import os
import subprocess
import sys
import threading

import pytest

from podium.components.tracking.migrate import LOCK, migrate
from podium.trainer.trial.errors import PodiumError, UserError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture
def database(postgres, request):
    """An empty database; its name and address."""
    name = f"t_{abs(hash(request.node.nodeid)) % 10**8}_{os.getpid()}"
    return name, postgres.create(name)


def started(address):
    argv = [sys.executable, "-m", "podium.components.tracking.migrate"]
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": address}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_that_migrate_at_once_one_does_it(database):
    together = [started(database[1]) for _ in range(3)]
    said = [each.communicate(timeout=900) for each in together]
    assert [each.returncode for each in together] == [0, 0, 0], said
    outcomes = sorted("nothing to do" in out for out, _ in said)
    assert outcomes == [False, True, True]


def test_a_migration_waits_for_whoever_holds_the_lock(database, postgres):
    import psycopg

    address = database[1]
    with psycopg.connect(address) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        waiting = threading.Event()
        done = threading.Event()

        def run():
            waiting.set()
            migrate(address)
            done.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        waiting.wait()
        assert not done.wait(5)
        assert postgres.ask(database[0], "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"
        holder.rollback()
        assert done.wait(120)
        thread.join()


def test_a_migration_that_is_killed_leaves_a_database_that_the_next_one_migrates(database, postgres):
    name, address = database
    process = started(address)
    # as soon as the first tables are there, the migrations run
    for _ in range(1200):
        if postgres.ask(name, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") != "0":
            break
        threading.Event().wait(0.05)
    process.kill()
    process.communicate()
    assert "(MLflow" in migrate(address)
    assert "nothing to do" in migrate(address)


def test_a_database_of_a_newer_mlflow_is_refused_in_words(database, postgres):
    name, address = database
    migrate(address)
    postgres.ask(name, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(UserError, match="a newer MLflow migrated it") as error:
        migrate(address)
    assert "restore the backup" in str(error.value)


def test_a_database_that_stays_away_is_said_without_its_password(postgres):
    address = postgres.create(f"gone_{os.getpid()}").replace(f":{postgres.port}/", ":1/")
    with pytest.raises(PodiumError, match="no database after 1 s") as error:
        migrate(address, wait_seconds=1)
    assert "p%40ssword" not in str(error.value)
    assert "p@ssword" not in str(error.value)


def test_the_installed_database_is_this_mlflows(installed, postgres):
    name = installed.values["mlflow"]["database"]["name"]
    assert postgres.ask(name, "SELECT count(*) FROM alembic_version") == "1"
    assert int(postgres.ask(name, "SELECT count(*) FROM experiments")) >= 1, "the server has its default experiment"


def test_a_step_reaches_the_server_by_the_configured_name(installed):
    code = (
        "import os; from podium.trainer.trial.sync import client, mlflow_uri\n"
        "uri = mlflow_uri(os.environ['PODIUM_STORE']); print(uri, len(client(uri).search_experiments()))"
    )
    installed.start_pod("asks-mlflow", "python", "-c", code)
    said = installed.wait_for_pod("asks-mlflow")
    assert said.split()[0] == installed.mlflow_uri
    assert int(said.split()[1]) >= 1


def test_a_foreign_host_name_and_a_foreign_page_are_refused(installed):
    code = (
        "import sys, urllib.request as u, urllib.error\n"
        "for name, value in (('Host', 'rebinding.example'), ('Origin', 'http://rebinding.example')):\n"
        "    url, data = sys.argv[1] + '/api/2.0/mlflow/experiments/search', b'{\"max_results\": 1}'\n"
        "    headers = {name: value, 'Content-Type': 'application/json'}\n"
        "    try: print(name, u.urlopen(u.Request(url, data, headers)).status)\n"
        "    except urllib.error.HTTPError as error: print(name, error.code)"
    )
    installed.start_pod("foreigner", "python", "-c", code, installed.mlflow_uri)
    assert installed.wait_for_pod("foreigner").split() == ["Host", "403", "Origin", "403"]


def test_a_runner_may_start_jobs_in_its_namespace_and_nothing_else(installed, cluster):
    account = f"system:serviceaccount:{installed.runner}:pipeline-runner"

    def allowed(*what, namespace=installed.runner):
        argv = ["kubectl", "--kubeconfig", cluster.kubeconfig, "auth", "can-i", *what, "--as", account]
        return subprocess.run([*argv, "-n", namespace], capture_output=True, text=True).stdout.strip() == "yes"

    assert allowed("create", "jobs.batch")
    assert allowed("get", "pods", "--subresource=log")
    for forbidden in (("list", "secrets"), ("get", "secrets"), ("create", "pods"), ("update", "roles")):
        assert not allowed(*forbidden)
    assert not allowed("create", "jobs.batch", namespace=installed.namespace)
    assert not allowed("list", "pods", namespace="kube-system")
    trial = f"system:serviceaccount:{installed.runner}:podium-trial"
    listed = cluster.kubectl("auth", "can-i", "--list", "--as", trial, "-n", installed.runner)
    assert "jobs" not in listed
    assert "pods " not in listed


def test_the_reaper_runs_as_a_pod_with_its_own_rights(installed, cluster):
    name = "reap-now"
    cluster.kubectl("-n", installed.runner, "create", "job", name, f"--from=cronjob/{installed.name}-podium-reaper")
    waited = cluster.kubectl(
        "-n", installed.runner, "wait", f"job/{name}", "--for=condition=Complete", "--timeout=600s", check=False
    )
    log = cluster.kubectl("-n", installed.runner, "logs", f"job/{name}", check=False)
    assert "condition met" in waited, log + json.dumps(installed.config)
    print(log)
