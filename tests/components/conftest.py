"""A study of two stages in a store, and results for its trials: what the steps between and after the trainings read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.trainer.builtin.config import RunSpec
from podium.trainer.trial.result import Status, TrialResult

TWO_STAGES = """
name: two-stages
question: Is wide better?
data:
  corpus: {{source: files, path: {corpus}}}
  vocab_size: 300
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 0.003}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 5, sequences: 8}}
  checkpoint: {{every_steps: 5}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants:
  baseline: {{}}
  wide: {{overrides: {{model.d_ff: 24}}}}
  narrow: {{overrides: {{model.d_ff: 8}}}}
stages:
  screen:
    budget: {{steps: 10}}
    promotion: {{policy: best_mean}}
  prove:
    budget: {{steps: 10}}
    seeds: 2
    min_seeds: 2
    proof: true
    promotion: {{policy: best_mean}}
evaluation: {{smallbench: null, latency: false, throughput: false, price: {{usd_per_gpu_hour: 3600}}}}
"""


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few kilobytes of text."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(f"Paragraph {n} of a corpus, with {n * n} words in it." for n in range(300)))
    return path


@pytest.fixture
def two_stages(small_corpus: Path) -> str:
    """The study's text."""
    return TWO_STAGES.format(corpus=small_corpus)


@pytest.fixture
def two_stage_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_stages: str) -> Run:
    """A run of it, of which nothing has been trained; MLflow is a file of its own."""
    monkeypatch.setenv("PODIUM_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Run.create(str(tmp_path / "store"), load_study(two_stages))


Finish = Callable[..., None]


@pytest.fixture
def finish() -> Finish:
    """Write results for all trials of a stage, as their trainer would: `finish(run, "screen", wide=[3.1], …)`."""

    def write(run: Run, stage: str, status: Status = Status.COMPLETED, **losses: list[float]) -> None:
        for trial in run.trials(stage):
            seeds = [each.seed for each in run.trials(stage) if each.variant.name == trial.variant.name]
            if trial.variant.name not in losses:
                continue
            spec: RunSpec = run.run_spec(trial)
            folder = run.storage.child(trial.key.folder)
            folder.write_json("config.json", spec.model_dump(mode="json"))
            for name in ("ckpt-step-5.pt", "ckpt-step-10.pt", "best-model.safetensors", "final-model.safetensors"):
                folder.write_bytes(f"checkpoints/{name}", b"weights")
            loss = losses[trial.variant.name][seeds.index(trial.seed)]
            result = TrialResult(
                run_name=trial.key.name,
                fingerprint=trial.fingerprint,
                status=status,
                reason="done",
                seed=trial.seed,
                steps=10,
                tokens=640,
                final_val_loss=loss,
                final_val_perplexity=2.0**loss,
                best_val_loss=loss,
                final_model="checkpoints/final-model.safetensors",
                device_seconds=1.0,
                cost_usd=0.5,
            )
            folder.write_json("result.json", result.model_dump(mode="json"))

    return write
