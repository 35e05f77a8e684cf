"""The MoE-emergence study's smoke profile as a newcomer runs it: four runs, compared, and one registered."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from podium.components.study.run import Run
from podium.trainer.trial.result import Status
from podium.trainer.trial.sync import mlflow_uri

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

COMMAND = ("run", "moe-emergence", "--profile", "smoke", "--store", "store")


def test_the_smoke_study_compares_its_runs_and_registers_moe_mains_best(podium, tmp_path):
    began = time.monotonic()
    ran = podium(*COMMAND, timeout=1400)
    seconds = time.monotonic() - began
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(f"the MoE-emergence smoke study took {seconds:.0f} s (two quiet cores: under 300)")
    run = Run.open(str(tmp_path / "store"))

    gate = run.read_json("shakedown.json")
    assert gate["passed"]
    names = {check["name"] for check in gate["checks"]}
    assert {"dense: resume", "moe: resume", "moe: router metrics"} <= names
    assert [check["name"] for check in run.ledger.entries("gate")[0].data["checks"]] == [
        c["name"] for c in gate["checks"]
    ]

    ends = {stage: [run.result(trial.key) for trial in run.trials(stage)] for stage in run.stages}
    assert list(ends) == ["dense", "moe-main", "no-lb", "top2"]
    for stage, (result,) in ends.items():
        assert result.status in (Status.COMPLETED, *([Status.COLLAPSED] if stage == "no-lb" else []))
        assert set(result.final_val_loss_by_domain) == {"code", "math", "prose"}
        assert run.verdict(stage).decision == "promote"
        assert run.verdict(stage).winner is None, "nothing is ranked"
    ended = {entry.key: entry.data for entry in run.ledger.entries("trial_ended")}
    (no_lb,) = ends["no-lb"]
    assert ended["no-lb/gpt2/seed-42"]["reason"] == no_lb.reason
    assert run.storage.exists("trials/moe-main/gpt2/seed-42/note.md")

    registration = run.read_json("registration.json")
    (main,) = ends["moe-main"]
    assert (registration["alias"], registration["proven"]) == ("candidate", False)
    assert registration["weights"] == "trials/moe-main/gpt2/seed-42/checkpoints/best-model.safetensors"
    assert registration["loss"] == main.best_val_loss
    loading = f"""
import json, mlflow
mlflow.set_tracking_uri({mlflow_uri(run.store_uri)!r})
model = mlflow.pyfunc.load_model("models:/moe-emergence@candidate")
print(json.dumps(model.unwrap_python_model().evaluate({registration["dataset"]!r})))
"""
    loaded = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert json.loads(loaded.stdout.splitlines()[-1])["loss"] == pytest.approx(main.best_val_loss, abs=1e-6)

    report = tmp_path / "store" / "runs" / run.id / "report"
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "Do experts emerge?" in html
    assert "demo: generated arithmetic and algebra" in html
    assert {f"emergence-{stage}-block-{n}.svg" for stage in ("moe-main", "no-lb", "top2") for n in (2, 3)} <= {
        path.name for path in (report / "figures").iterdir()
    }
    again = podium(*COMMAND, timeout=600)
    assert again.returncode == 0, again.stderr
    assert run.read_json("registration.json") == registration, "the same command again repeats nothing"


def test_a_mixture_that_crashes_ends_the_run_at_the_gate_with_code_4(podium, tmp_path):
    """A trainer whose mixtures crash: the dense shakedown passes, the other does not, and no stage is begun."""
    (tmp_path / "stand_in.py").write_text(
        "import json, os, pathlib, sys\n"
        "spec = json.loads((pathlib.Path(sys.argv[1].removeprefix('file://')) / 'config.json').read_text())\n"
        "if spec['config']['model']['moe']:\n"
        "    print('no room for experts')\n"
        "    sys.exit(2)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'podium.trainer', 'train', '--run-spec', sys.argv[1]])\n"
    )
    command = f"{sys.executable} {tmp_path / 'stand_in.py'}"
    ran = podium(*COMMAND, timeout=1400, PODIUM_TRIAL_COMMAND=command)
    assert ran.returncode == 4, ran.stdout + ran.stderr
    assert "moe: trained: no result" in ran.stdout + ran.stderr
    run = Run.open(str(tmp_path / "store"))
    assert run.state() == "gate_failed"
    (entry,) = run.ledger.entries("gate")
    assert not entry.data["passed"]
    assert [check["name"] for check in entry.data["checks"] if check["passed"]][:2] == [
        "dense: trained",
        "dense: finite losses",
    ]
    assert "no room for experts" in entry.data["reason"]
    assert all(run.result(trial.key) is None for trial in run.known_trials())
    assert not run.storage.list("trials")
