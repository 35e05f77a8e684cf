"""The shipped study's smoke profile as a newcomer runs it, on real text (`make demo` takes what Python brings)."""

import csv
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podium.components.study.run import Run
from podium.trainer.trial.sync import mlflow_uri

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = ("run", "param-allocation", "--profile", "smoke", "--store", "store")


def check_report(run: Path) -> None:
    """The report is one file without a script error's source, and every figure of a trial is in results.csv."""
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']https?://""", html)
    assert html.count("<svg") >= 4
    rows = list(csv.DictReader((run / "report" / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["status"] for row in rows} <= {"completed", "killed"}
    assert len(rows) >= 6 + 6
    for name in ("summary.md", "phase1_summary.csv", "phase1_top1.json"):
        assert (run / "report" / name).stat().st_size > 0
    assert len(list((run / "report" / "figures").glob("*.svg"))) >= 4


def check_champion(store: Path, status: dict) -> None:
    """The registered model, loaded as any MLflow model, has the loss that the verdict states for it."""
    champion = status["champion"]
    run = Run.open(str(store))
    verdict = run.verdict(run.stages[-1])
    assert champion["proven"] == verdict.proven
    assert champion["alias"] == ("champion" if verdict.proven else "candidate")
    registration = run.read_json("registration.json")
    stated = next(arm for arm in verdict.ranking if arm.variant == champion["variant"])
    assert stated.values[str(registration["seed"])] == champion["value"]

    loading = f"""
import json, mlflow
mlflow.set_tracking_uri({mlflow_uri(run.store_uri)!r})
model = mlflow.pyfunc.load_model("models:/{run.study.name}@{champion["alias"]}")
print(json.dumps(model.unwrap_python_model().evaluate({registration["dataset"]!r})))
"""
    loaded = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert json.loads(loaded.stdout.splitlines()[-1])["loss"] == pytest.approx(champion["value"], abs=1e-6)


@pytest.mark.core
def test_the_smoke_study_ends_with_a_registered_champion(podium, tmp_path, real_text):
    data = ("--data", real_text)
    began = time.monotonic()
    ran = podium(*RUN, *data)
    seconds = time.monotonic() - began
    assert ran.returncode == 0, ran.stderr[-3000:]
    print(f"smoke study: {seconds:.0f} s")  # a figure for RESULTS.md; a busy machine must not fail it

    last = ran.stdout.splitlines()[-1]
    found = re.fullmatch(r"winner: (\S+) · (proven|candidate): .* · report: (\S+)", last)
    assert found, last
    report = tmp_path / found[3]
    assert report.name == "index.html"

    status = json.loads(podium("status", "store", "--json").stdout)
    assert status["state"] == "succeeded"
    assert status["champion"]["variant"] == found[1]
    ranking = status["stages"][0]
    assert (ranking["name"], ranking["trials"], ranking["finished"]) == ("ranking", 6, 6)
    assert math.isfinite(status["champion"]["value"])
    check_report(report.parents[1])
    check_champion(tmp_path / "store", status)

    stamps = {path: path.stat().st_mtime_ns for path in report.parents[1].rglob("*") if path.is_file()}
    again = podium(*RUN, *data)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == last
    assert {path: path.stat().st_mtime_ns for path in report.parents[1].rglob("*") if path.is_file()} == stamps


def test_a_part_of_a_study_is_incomplete_and_the_rest_follows(podium, seconds_study):
    part = podium("run", seconds_study, "--store", "store", "--stages", "ranking", "--variants", "baseline,rate-0.01")
    assert part.returncode == 5, part.stderr[-3000:]
    status = json.loads(podium("status", "store", "--json").stdout)
    assert status["state"] == "incomplete"
    assert status["stages"][0]["finished"] == 2
    whole = podium("run", seconds_study, "--store", "store", "--json")
    assert whole.returncode == 0, whole.stderr[-3000:]
    concluded = json.loads(whole.stdout)
    assert concluded["state"] == "succeeded"
    assert concluded["exit_code"] == 0
    assert concluded["run_id"] == status["run_id"]


def test_a_new_study_runs_as_it_is_written(podium):
    assert podium("new", "first-study").returncode == 0
    ran = podium("run", "first-study.yaml", "--profile", "smoke")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1].startswith("winner: ")
