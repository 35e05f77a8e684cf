"""report, export and sync: what a run left goes where it is asked to, and nowhere else."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from podium.components.study.registration import SourceState
from podium.trainer.trial.sync import client


def test_a_report_is_built_from_the_store_in_any_state(podium, make_run):
    for until in ("start", "ranking", "registered"):
        run = make_run(until)
        built = podium("report", run.store_uri)
        assert built.exit_code == 0, built.output
        page = Path(built.stdout.strip())
        assert page.name == "index.html"
        assert run.id in page.read_text(encoding="utf-8")


def test_reports_of_every_run_of_a_store(podium, make_run, study, text):
    runs = [make_run()]
    study.write_text(text.replace("steps: 8", "steps: 16"))
    runs.append(make_run("ranking"))
    built = podium("report", runs[0].store_uri, "--all").stdout.splitlines()
    assert [Path(line).parent.parent.name for line in built] == [run.id for run in runs]


def test_one_table_has_every_trial_of_every_run(podium, make_run, study, text, tmp_path):
    runs = [make_run()]
    study.write_text(text.replace("steps: 8", "steps: 16"))
    runs.append(make_run("ranking"))
    written = podium("export", runs[0].store_uri, "--layout", "table", "--to", tmp_path / "out").stdout.strip()
    rows = list(csv.DictReader(Path(written).read_text(encoding="utf-8").splitlines()))
    finished = [(row["run_id"], row["trial"]) for row in rows if row["status"] == "completed"]
    expected = [(run.id, trial.key.name) for run in runs for trial in run.known_trials() if run.result(trial.key)]
    assert sorted(finished) == sorted(expected)

    plots = podium("export", written, "--layout", "plots", "--to", tmp_path / "plots").stdout.splitlines()
    assert plots
    for plot in plots:
        ElementTree.parse(plot)


def test_the_generic_layout_has_results_verdicts_and_figures(podium, make_run, tmp_path):
    run = make_run()
    written = podium("export", run.uri, "--to", tmp_path / "out").stdout.splitlines()
    names = {str(Path(path).relative_to(tmp_path / "out")) for path in written}
    assert {"results.csv", "summary.md", "verdicts/proof.json", "verdicts/ranking.md"} <= names


def test_the_speedrun_layout_has_a_folder_an_experiment_and_says_how_each_went(podium, make_run, tmp_path):
    run = make_run()
    lines = podium("export", run.uri, "--layout", "speedrun", "--to", tmp_path / "out").stdout.splitlines()
    said = [line for line in lines if "Runs: " in line]
    folders = {path.name.rpartition("_")[0].rpartition("_")[0] for path in (tmp_path / "out").iterdir()}
    assert {f"{run.study.name}-{line.partition(':')[0].replace(' ', '-')}" for line in said} == folders
    assert all("val_loss" in line for line in said)


def test_a_dirty_checkout_is_warned_of_where_money_is_spent(podium, study, text, monkeypatch):
    state = SourceState(commit="c" * 40, changed=["trainer/loop.py"])
    monkeypatch.setattr("podium.components.study.registration.source_state", lambda: state)
    paid = json.loads(podium("plan", study, "--json").stdout)
    assert paid["usd"] > 0
    assert state.warning in paid["warnings"]
    study.write_text(re.sub(r"usd_per_(run|gpu_hour): [\d.]+", r"usd_per_\1: 0", text))
    free = json.loads(podium("plan", study, "--json").stdout)
    assert free["usd"] == 0
    assert state.warning not in free["warnings"]


def test_a_layout_that_does_not_fit_is_refused_and_nothing_written(podium, make_run, tmp_path):
    run = make_run()
    for layout in ("param-allocation", "beautiful"):
        refused = podium("export", run.uri, "--layout", layout, "--to", tmp_path / "out")
        assert refused.exit_code == 2
        assert layout in refused.stderr
    assert not (tmp_path / "out").exists()


def test_sync_sends_what_mlflow_lacks_and_sends_it_once(podium, make_run, tmp_path):
    run = make_run()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for _ in range(2):
        sent = podium("sync", run.uri, "--mlflow-uri", uri)
        assert sent.exit_code == 0, sent.output
        assert sent.stdout == f"6 trials are in MLflow at {uri}\n"
    server = client(uri)
    experiment = server.get_experiment_by_name(run.study.name)
    found = server.search_runs([experiment.experiment_id])
    trials = {entry.info.run_name: entry for entry in found if "seed" in entry.data.tags}
    assert len(trials) == 6
    for trial in run.known_trials():
        points = server.get_metric_history(trials[trial.key.name].info.run_id, "val_loss")
        assert len(points) == 1


def test_sync_to_a_server_that_is_down_says_so(podium, make_run):
    refused = podium("sync", make_run("ranking").uri, "--mlflow-uri", "http://127.0.0.1:9")
    assert refused.exit_code == 2
    assert "http://127.0.0.1:9" in refused.stderr
