"""The gate: it passes a trainer that works, and fails one that does not with the reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from podium.components.shakedown.step import Check, Shaken, gate_page, gate_spec, run_checks, shakedown
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.result import Status, TrialResult, Versions
from podium.trainer.trial.storage import Storage, open_storage

STUDY = """
name: gate
question: Does the gate see what is wrong?
data:
  corpus: {{source: files, path: {corpus}}}
  vocab_size: 300
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 0.003}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 10}}
  checkpoint: {{every_steps: 10}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants: {{baseline: {{}}}}
stages:
  first:
    budget: {{steps: 40}}
    promotion: {{policy: always}}
shakedown: {{steps: 8, price: {{usd_per_gpu_hour: 3600}}}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"Paragraph {n} of a corpus, with {n * n} words in it." for n in range(300)))
    monkeypatch.setenv("PODIUM_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Run.create(str(tmp_path / "store"), load_study(STUDY.format(corpus=corpus)))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a trainer that is these lines of Python in the trainer's place, and nothing in MLflow's."""
    monkeypatch.setattr("podium.components.launch.tracker.Tracker", lambda *_: nullcontext())

    def use(code: str) -> None:
        (tmp_path / "stand_in.py").write_text(code)
        monkeypatch.setenv("PODIUM_TRIAL_COMMAND", f"{sys.executable} {tmp_path / 'stand_in.py'}")

    return use


def gate_of(run: Run) -> dict[str, Any]:
    gate = run.read_json("shakedown.json")
    assert isinstance(gate, dict)
    return gate


def test_a_crash_fails_the_gate_with_the_last_lines_and_a_later_gate_can_pass(
    run: Run, stand_in: Callable[[str], None]
) -> None:
    stand_in("import sys; print('out of luck'); sys.exit(1)")
    assert shakedown(run.id, run.store_uri, "process", "0") == "fail"
    gate = gate_of(run)
    assert not gate["passed"]
    assert (
        gate["reason"] == "trained: no result; ended well: shakedown/whole ended with code 1:\nout of luck\nout of luck"
    )
    assert gate["cost_usd"] > 0
    assert run.state() == "gate_failed"
    assert len(run.ledger.entries("gate")) == 1
    assert shakedown(run.id, run.store_uri, "process", "0") == "fail", "a failed gate is tried again"
    assert len(run.ledger.entries("gate")) == 1


def test_a_config_that_cannot_be_run_is_tried_once(run: Run, stand_in: Callable[[str], None]) -> None:
    stand_in("import sys; print('bad field'); sys.exit(2)")
    assert shakedown(run.id, run.store_uri, "process", "0") == "fail"
    assert gate_of(run)["reason"].endswith("code 2:\nbad field")


def test_the_gate_trains_the_baseline_for_a_few_steps_with_the_whole_schedule(run: Run) -> None:
    spec = gate_spec(run)
    assert (spec.config.steps, spec.config.evaluation.every_steps, spec.config.checkpoint.every_steps) == (8, 4, 2)
    assert spec.config.stop.kill is None
    assert spec.labels["variant"] == "baseline"


def test_the_real_trainer_passes_once(run: Run) -> None:
    from podium.components.study.trials import datasets
    from podium.trainer.builtin.data.prepare import prepare

    for config in datasets(run.study).values():
        prepare(config, run.store)
    assert shakedown(run.id, run.store_uri, "process", "0") == "pass"
    gate = gate_of(run)
    assert {check["name"] for check in gate["checks"] if check["passed"]} >= {
        "trained",
        "finite losses",
        "checkpoints",
        "resume",
        "tracking",
    }
    assert "MLflow run" in next(check["detail"] for check in gate["checks"] if check["name"] == "tracking")
    before = {key: run.storage.read_bytes(key) for key in run.storage.list()}
    assert shakedown(run.id, run.store_uri, "process", "0") == "pass"
    assert {key: run.storage.read_bytes(key) for key in run.storage.list()} == before, "a passed gate is not run again"


# ---- each check, on what two runs left ----


@pytest.fixture
def left(run: Run, tmp_path: Path) -> Callable[..., dict[str, Check]]:
    """Writes what two good runs leave, lets `spoil` change it, and gives the checks by name."""
    config = gate_spec(run).config

    def look(spoil: Callable[[Storage, Storage], None] = lambda whole, resumed: None) -> dict[str, Check]:
        whole, resumed = open_storage(str(tmp_path / "whole")), open_storage(str(tmp_path / "resumed"))
        for folder in (whole, resumed):
            write_run(folder, config)
        spoil(whole, resumed)
        return {check.name: check for check in run_checks(Shaken(config, whole, resumed))}

    return look


def write_run(folder: Storage, config: TrainConfig) -> None:
    lines = []
    for step in range(1, config.steps + 1):
        lines.append({"step": step, "tokens": step * 64, "train_loss": 5.0 - step / 10})
        if step % 4 == 0:
            lines.append({"step": step, "tokens": step * 64, "val_loss": 5.0 - step / 10})
    folder.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for name in ("ckpt-step-2.pt", "ckpt-step-4.pt", "ckpt-step-6.pt", "ckpt-step-8.pt", "final-model.safetensors"):
        folder.write_bytes(f"checkpoints/{name}", b"")
    folder.write_bytes("checkpoints/final-model.json", b"")
    result = TrialResult(
        run_name="whole",
        status=Status.COMPLETED,
        reason="done",
        seed=42,
        steps=config.steps,
        versions=Versions(podium="0", device="a processor"),
    )
    folder.write_json("result.json", result.model_dump(mode="json"))


def change_lines(folder: Storage, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    lines = [change(json.loads(line)) for line in folder.read_text("metrics.jsonl").splitlines()]
    folder.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines if line))


def test_two_good_runs_pass_every_check(left: Callable[..., dict[str, Check]]) -> None:
    found = left()
    assert len(found) == 6
    assert all(check.passed for check in found.values()), found


def test_a_loss_that_is_not_finite_fails(left: Callable[..., dict[str, Check]]) -> None:
    found = left(
        lambda whole, _: change_lines(whole, lambda line: {**line, "val_loss": None} if "val_loss" in line else line)
    )
    assert not found["finite losses"].passed
    assert found["finite losses"].detail == "0 of 2 val_loss finite"


def test_a_missing_checkpoint_fails_by_name(left: Callable[..., dict[str, Check]]) -> None:
    found = left(lambda whole, _: whole.delete("checkpoints/ckpt-step-6.pt"))
    assert found["checkpoints"].detail == "missing: checkpoints/ckpt-step-6.pt"
    assert not found["checkpoints"].passed


def test_a_resume_that_takes_other_steps_fails_on_a_cpu(left: Callable[..., dict[str, Check]]) -> None:
    found = left(
        lambda _, resumed: change_lines(
            resumed, lambda line: {**line, "train_loss": 4.4000001} if line.get("step") == 6 else line
        )
    )
    assert not found["resume"].passed
    assert found["resume"].detail.startswith(
        "largest difference of a step's loss after the resume at step 4: 1e-07 nats"
    )


def test_a_resume_that_starts_over_or_stops_early_fails(left: Callable[..., dict[str, Check]]) -> None:
    found = left(lambda _, resumed: change_lines(resumed, lambda line: line if line["step"] < 8 else None))
    assert found["resume"].detail == "steps differ: 1 to 8 (8) in one go, 1 to 7 (7) with a resume at 4"
    assert not found["resume"].passed
    assert not left(lambda _, resumed: resumed.delete("result.json"))["resume"].passed


def test_steps_that_are_not_on_record_fail_the_tracking(left: Callable[..., dict[str, Check]]) -> None:
    found = left(lambda whole, _: change_lines(whole, lambda line: line if line["step"] != 3 else None))
    assert not found["tracking"].passed
    assert found["tracking"].detail.startswith("metrics.jsonl has 7 of 8 steps")


def test_a_loss_that_rises_only_informs(left: Callable[..., dict[str, Check]]) -> None:
    def rise(line: dict[str, Any]) -> dict[str, Any]:
        return {**line, "train_loss": 4.0 + line["step"] / 10} if "train_loss" in line else line

    found = left(lambda whole, resumed: [change_lines(folder, rise) for folder in (whole, resumed)])
    assert not found["falling loss"].passed
    assert not found["falling loss"].required
    assert all(check.passed for check in found.values() if check.required)


def test_a_run_that_never_trained_is_not_asked_for_more(left: Callable[..., dict[str, Check]]) -> None:
    found = left(lambda whole, _: whole.delete("result.json"))
    assert list(found) == ["trained"]
    assert not found["trained"].passed


def test_the_gates_page_says_first_why_it_failed_and_then_every_check(run: Run) -> None:
    checks = [
        Check(name="trained", passed=True, detail="40 steps"),
        Check(name="finite losses", passed=False, detail="3 of 8 train_loss finite | last: nan\nsee the log"),
    ]
    gate = {"passed": False, "reason": "finite losses: 3 of 8", "checks": [each.model_dump() for each in checks]}
    run.storage.write_json("shakedown.json", gate)
    lines = gate_page(run.id, run.store_uri).splitlines()
    assert lines[:3] == ["## Shakedown: failed", "", "finite losses: 3 of 8"]
    assert lines[-1] == "| ✗ | finite losses | 3 of 8 train_loss finite \\| last: nan<br>see the log |"
