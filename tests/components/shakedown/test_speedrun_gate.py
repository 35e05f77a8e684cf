"""The gate of a speedrun, whose schedule is given in steps: a few steps have the same shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from podium.components.shakedown.step import gate_spec
from podium.components.study.load import load_study
from podium.components.study.run import Run

STUDY = """
name: sprint
question: Which change is fastest?
data:
  corpus: {source: files, path: CORPUS}
  vocab_size: 300
config:
  model: {family: speedrun, d_model: 8, n_layers: 2, n_heads: 2}
  data: {sequence_length: 32, order: sequential}
  optimizer: {name: muon, learning_rate: 0.003}
  schedule: {name: warmdown, warmup_fraction: 0.0, final_fraction: 0.0, warmdown_steps: 100}
  batch: {sequences: 2}
  evaluation: {every_steps: 100}
  checkpoint: {every_steps: 100}
  runtime: {device: cpu, threads: 1}
design: one_at_a_time
axes: {rate: {field: optimizer.learning_rate, values: [0.003, 0.006]}}
stages:
  only: {budget: {steps: 400}, promotion: {policy: always}}
shakedown: {steps: 8}
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "corpus.txt").write_text("word " * 20_000)
    study = load_study(STUDY.replace("CORPUS", str(tmp_path / "corpus.txt")))
    return Run.create(f"file://{tmp_path}/store", study)


def test_the_warm_down_takes_the_same_share_of_the_gates_steps(run: Run) -> None:
    schedule = gate_spec(run).config.schedule
    assert (schedule.warmdown_steps, schedule.warmdown_fraction) == (None, 0.25)
    assert gate_spec(run).config.steps == 8
