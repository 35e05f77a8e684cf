"""The gate of a study with dense and mixture stages: both kinds are tried, each by its own checks."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from podium.components.shakedown.step import Shaken, gate_spec, run_checks, shakedown
from podium.components.study.load import load_study
from podium.components.study.plan import plan
from podium.components.study.run import Run
from podium.components.study.trials import gate_stages
from podium.trainer.trial.storage import open_storage

STUDY = """
name: gate
question: Are both kinds tried?
data:
  corpus: {{source: files, path: {corpus}}}
  vocab_size: 300
config:
  model: {{family: gpt2, d_model: 8, n_layers: 2, n_heads: 2, n_positions: 32, dropout: 0.0}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 0.003}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 10}}
  checkpoint: {{every_steps: 10}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants: {{baseline: {{}}}}
stages:
  dense: {{budget: {{steps: 40}}, promotion: {{policy: always}}}}
  more: {{budget: {{steps: 40}}, promotion: {{policy: always}}}}
  mixed:
    budget: {{steps: 40}}
    overrides: {{model.moe: {{layers: [1], num_experts: 4}}, router: {{log_every_steps: 20}}}}
    promotion: {{policy: always}}
shakedown: {{steps: 8, price: {{usd_per_run: 2}}}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"Paragraph {n} of a corpus, with {n * n} words in it." for n in range(300)))
    monkeypatch.setenv("PODIUM_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Run.create(str(tmp_path / "store"), load_study(STUDY.format(corpus=corpus)))


def test_each_mode_is_tried_once_by_the_first_stage_that_has_it(run: Run) -> None:
    assert gate_stages(run.study) == {"dense": "dense", "moe": "mixed"}
    assert gate_spec(run, "mixed").config.router.log_every_steps == 4
    assert gate_spec(run, "mixed").config.mode == "moe"
    assert plan(run.study).shakedown.trials == 2
    assert plan(run.study).shakedown.usd == 4


STAND_IN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1].removeprefix("file://"))
spec = json.loads((folder / "config.json").read_text())
config, steps = spec["config"], spec["config"]["max_steps"]
mixture = config["model"]["moe"]
if mixture and {broken}:
    print("the mixture is broken")
    sys.exit(2)
lines = []
for step in range(1, steps + 1):
    lines.append({{"step": step, "tokens": step, "train_loss": 5.0 - step / 10}})
    if mixture and step % 4 == 0:
        router = {{"layers": [1], "domains": ["all"], "noise": 0.0, "assigned": [[[1, 2, 3, 4]]], "entropy": [[1.0]],
                  "load_balance": [1.0], "z": [1.0], "dropped": [[0]]}}
        lines.append({{"step": step, "tokens": step, "router": router}})
    if step % 4 == 0:
        lines.append({{"step": step, "tokens": step, "val_loss": 5.0}})
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "checkpoints").mkdir(exist_ok=True)
for name in ("ckpt-step-2.pt", "ckpt-step-4.pt", "ckpt-step-6.pt", "ckpt-step-8.pt", "final-model.safetensors",
             "final-model.json"):
    (folder / "checkpoints" / name).write_bytes(b"")
result = {{"run_name": "x", "status": "completed", "reason": "done", "seed": 42, "steps": steps,
          "versions": {{"podium": "0"}}}}
(folder / "result.json").write_text(json.dumps(result))
"""


def gate_with(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, broken: bool) -> tuple[str, dict[str, Any]]:
    """The gate with a trainer that writes what a good one leaves, or refuses mixtures."""
    monkeypatch.setattr("podium.components.launch.tracker.Tracker", lambda *_: nullcontext())
    (tmp_path / "stand_in.py").write_text(STAND_IN.format(broken=broken))
    monkeypatch.setenv("PODIUM_TRIAL_COMMAND", f"{sys.executable} {tmp_path / 'stand_in.py'}")
    answer = shakedown(run.id, run.store_uri, "process", "0")
    gate = run.read_json("shakedown.json")
    assert isinstance(gate, dict)
    return answer, gate


def test_both_must_pass_and_are_on_record_by_mode(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, gate = gate_with(run, tmp_path, monkeypatch, broken=False)
    assert answer == "pass", gate
    names = [check["name"] for check in gate["checks"]]
    assert names[0] == "dense: trained"
    assert "moe: router metrics" in names
    assert "dense: router metrics" not in names
    assert gate["cost_usd"] == 4.0
    entry = run.ledger.entries("gate")[0]
    assert [check["name"] for check in entry.data["checks"]] == names


def test_a_mixture_that_fails_fails_the_gate_and_names_the_check(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, gate = gate_with(run, tmp_path, monkeypatch, broken=True)
    assert answer == "fail"
    assert gate["reason"].startswith("moe: trained: no result; moe: ended well: shakedown/moe/whole ended with code 2")
    assert run.state() == "gate_failed"


@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (lambda line: None if line["step"] == 8 else line, "recorded at [4], due at [4, 8]"),
        (lambda line: {**line, "router": {**line["router"], "z": [None]}}, "a loss or a layer's shares are missing"),
    ],
)
def test_missing_routing_fails_a_mixtures_gate(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, detail: str
) -> None:
    gate_with(run, tmp_path, monkeypatch, broken=False)
    whole, resumed = (run.storage.child(f"shakedown/moe/{name}") for name in ("whole", "resumed"))
    lines = [json.loads(line) for line in whole.read_text("metrics.jsonl").splitlines()]
    kept = [spoil(line) if "router" in line else line for line in lines]
    whole.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept if line))
    shaken = Shaken(gate_spec(run, "mixed").config, open_storage(whole.uri), open_storage(resumed.uri))
    found = {check.name: check for check in run_checks(shaken)}
    assert not found["router metrics"].passed
    assert detail in found["router metrics"].detail
