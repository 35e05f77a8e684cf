"""A study of seconds, and the command line run in this process."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from podium.components.policies.decide import decide
from podium.components.study import layout
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.verdict import Verdict
from podium.pipelines.cli.main import app
from podium.trainer.trial.result import Status, TrialResult

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


def _finish(run, stage, losses):
    """Write what the trials of a stage leave, without training them, and the stage's verdict."""
    for trial in run.trials(stage):
        loss = losses[trial.variant.name] + 0.001 * (trial.seed % 10)
        folder = trial.key.folder
        result = TrialResult(
            run_name=trial.key.name,
            fingerprint=trial.fingerprint,
            status=Status.COMPLETED,
            reason="all steps done",
            seed=trial.seed,
            steps=8,
            tokens=trial.config.tokens,
            final_val_loss=loss,
            final_val_perplexity=math.exp(loss),
            best_val_loss=loss,
            n_layers=1,
            cost_usd=0.01,
        )
        run.storage.write_text(f"{folder}/config.json", run.run_spec(trial).model_dump_json())
        line = {"step": 8, "tokens": trial.config.tokens, "val_loss": loss, "train_seconds": 2.0}
        run.storage.write_text(f"{folder}/metrics.jsonl", json.dumps(line) + "\n")
        for name in ("ckpt-step-4.pt", "model-step-4.safetensors", "final-model.safetensors", "best-model.safetensors"):
            run.storage.write_text(f"{folder}/checkpoints/{name}", "x" * 100)
        run.storage.write_text(trial.key.log, f"first line of {trial.key.name}\nlast line\n")
        run.storage.write_text(f"{folder}/result.json", result.model_dump_json())
        run.ledger.append("trial_ended", trial.key.name, status="completed", reason=result.reason)
    verdict = decide(run.study, run.results(stage))
    assert isinstance(verdict, Verdict)
    run.write_verdict(verdict)
    return verdict


@pytest.fixture
def make_run(study, tmp_path):
    """Makes a run as if it had been trained, up to a stage: `start`, `ranking`, `proof` or `registered`."""

    def make(until="registered", *, store="store", losses=None):
        losses = losses or {"baseline": 2.0, "rate-0.01": 1.5}
        run = Run.create(str(tmp_path / store), load_study(str(study)), "full", None, study.read_text())
        if until == "start":
            return run
        run.storage.write_json(layout.SHAKEDOWN, {"passed": True})
        run.storage.write_text("shakedown/whole/checkpoints/final-model.safetensors", "x" * 100)
        _finish(run, "ranking", losses)
        if until == "ranking":
            return run
        verdict = _finish(run, "proof", losses)
        if until == "registered":
            champion = {"variant": verdict.winner, "proven": True, "alias": "champion", "metric": verdict.metric}
            run.storage.write_json(layout.REGISTRATION, {**champion, "value": 1.5})
        return run

    return make
