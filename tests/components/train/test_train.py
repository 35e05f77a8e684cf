"""The step train with the real trainer: results do not depend on how its processes are started."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from podium.components.launch.conductor import conduct
from podium.components.launch.process import ProcessLauncher
from podium.components.study.design import Selection
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.trials import datasets
from podium.components.train.step import train
from podium.trainer.builtin.data.prepare import prepare

STUDY = """
name: two
question: Do two trials end?
data:
  corpus: {{source: files, path: {corpus}}}
  vocab_size: 300
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 0.003}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 4}}
  checkpoint: {{every_steps: 4}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants: {{baseline: {{}}, hot: {{overrides: {{optimizer.learning_rate: 0.09}}}}}}
stages:
  first:
    budget: {{steps: 12}}
    resources: {{parallel: 2}}
    stop: {{kill: {{criteria: [{{metric: loss, threshold: 50.0}}], span_tokens: 256, min_tokens: 256}}}}
    promotion: {{policy: best_mean}}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"Paragraph {n} of a corpus, with {n * n} words in it." for n in range(300)))
    monkeypatch.setenv("PODIUM_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    made = Run.create(str(tmp_path / "store"), load_study(STUDY.format(corpus=corpus)))
    for config in datasets(made.study).values():
        prepare(config, made.store)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def without_times(run: Run, name: str) -> dict[str, Any]:
    folder = run.storage.child(f"trials/first/{name}/seed-42")
    lines = [json.loads(line) for line in folder.read_text("metrics.jsonl").splitlines()]
    result = folder.read_json("result.json")
    weights = folder.read_bytes("checkpoints/final-model.safetensors")
    result["versions"].pop("commit")  # a checkout's, which may move on meanwhile
    times = [key for key in result if "seconds" in key] + ["peak_memory_bytes", "tokens_per_second", "attempts"]
    return {
        "metrics": [{key: value for key, value in line.items() if key != "train_seconds"} for line in lines],
        "result": {key: value for key, value in result.items() if key not in times},
        # behind its header, in which safetensors puts two names in a random order
        "weights": weights[8 + int.from_bytes(weights[:8], "little") :],
    }


def test_forked_and_fresh_processes_give_the_same_bits_and_mlflow_has_the_tree(run: Run) -> None:
    assert train(run.id, run.store_uri, "first", "0", "process", "") == "2/2"
    forked = {name: without_times(run, name) for name in ("baseline", "hot")}
    mlflow_runs = {name: run.storage.read_json(f"trials/first/{name}/seed-42/sync.json")["run_id"] for name in forked}

    shutil.rmtree(Path(run.storage.uri.removeprefix("file://")) / "trials")
    launcher = ProcessLauncher(run.storage, slots=2, warm=False)
    assert conduct(run, "first", launcher).finished == 2
    for name, content in forked.items():
        again = without_times(run, name)
        assert [part for part in content if again[part] != content[part]] == [], name

    from podium.trainer.trial.sync import client, mlflow_uri

    tracked = client(mlflow_uri(run.store_uri))
    parents = {tracked.get_run(mlflow_runs[name]).data.tags["mlflow.parentRunId"] for name in forked}
    assert len(parents) == 1
    stage = tracked.get_run(parents.pop())
    assert stage.data.tags["stage"] == "first"
    assert tracked.get_run(stage.data.tags["mlflow.parentRunId"]).data.tags["run"] == run.id


def test_a_stage_that_is_left_out_or_decided_starts_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podium.components.launch.tracker.Tracker", lambda *_: pytest.fail("nothing to track"))
    nothing = Selection(stages=("another",)).to_json()
    assert train(run.id, run.store_uri, "first", "0", "process", nothing) == "0/0"
    assert run.storage.list("trials") == []


def test_a_cancelled_stage_ends_without_starting_anything(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PODIUM_MLFLOW_URI")
    monkeypatch.setattr("podium.components.launch.tracker.Tracker", lambda *_: nullcontext())
    run.storage.write_json("cancel.json", {"cancelled": True})
    assert train(run.id, run.store_uri, "first", "0", "process", "") == "0/2"
    assert "stage first stopped: cancelled" in capsys.readouterr().out
    assert os.listdir(run.storage.uri.removeprefix("file://")).count("trials") == 0
