"""A study of seconds, and the command line run in this process."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from podium.pipelines.cli.main import app

TINY = """\
name: tiny
question: Which learning rate is better in seconds?
data:
  corpus: {source: files, path: CORPUS}
  vocab_size: 300
config:
  model: {d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 4}
  evaluation: {every_steps: 4, sequences: 4, batch_sequences: 4}
  checkpoint: {every_steps: 4}
  runtime: {device: cpu, precision: fp32, compile: never, threads: 1}
design: one_at_a_time
axes:
  rate: {field: optimizer.learning_rate, values: [1e-3, 1e-2]}
stages:
  ranking:
    budget: {steps: 8}
    price: {usd_per_gpu_hour: 1, minutes_per_run: 1}
    promotion: {policy: top_per_axis, combine: false}
  proof:
    budget: {steps: 8}
    seeds: 2
    proof: true
    price: {usd_per_gpu_hour: 1, minutes_per_run: 1}
    promotion: {policy: best_mean}
shakedown: {steps: 4}
evaluation: {smallbench: null, latency: false, throughput: false}
"""


@pytest.fixture
def text(tmp_path) -> str:
    """A study's YAML over a small corpus of its own."""
    corpus = tmp_path / "corpus.txt"
    sentences = (f"The {word} of chapter {n} says {n * 7} things.\n" for n in range(1500) for word in ("cat", "hen"))
    corpus.write_text("".join(sentences), encoding="utf-8")
    return TINY.replace("CORPUS", str(corpus))


@pytest.fixture
def study(tmp_path, text) -> Path:
    """The study as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def podium(tmp_path, monkeypatch):
    """Runs the command line in an empty working folder of its own."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])
