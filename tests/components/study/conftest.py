from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.schema import Study
from podium.components.study.trials import Trial
from podium.trainer.trial.result import Status, TrialResult
from podium.trainer.trial.yaml_text import dump_yaml, parse_yaml

TINY = """
name: tiny
question: which
data: {corpus: {source: files, path: CORPUS}, vocab_size: 2048}
config:
  model: {allocation: {parameters: 320k, embedding_share: 0.35, glu_expansion: 2.66}}
  data: {sequence_length: 128}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 4}
  evaluation: {every_steps: 10, sequences: 8}
  checkpoint: {every_steps: 20}
  runtime: {threads: 1, device: cpu}
design: one_at_a_time
axes:
  embedding: {field: model.allocation.embedding_share, values: [0.25, 0.35, 0.45], names: [emb25, emb35, emb45]}
  glu: {field: model.allocation.glu_expansion, values: [2, 2.66, 3, 4], names: [glu2x, glu266x, glu3x, glu4x]}
stages:
  ranking:
    budget: {steps: 40}
    promotion: {policy: top_per_axis, metric: final_val_perplexity}
  finals:
    budget: {steps: 60}
    seeds: 3
    proof: true
    min_seeds: 3
    promotion: {policy: best_mean}
"""
_GONE = object()


@pytest.fixture
def gone() -> object:
    """What `tiny_text(field=gone)` is given to leave a field out."""
    return _GONE


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("A few words of text that nobody trains on.\n\n" * 50)
    return path


@pytest.fixture
def tiny_text(corpus: Path) -> Callable[..., str]:
    """The text of a small study, with dotted fields (`stages.ranking.seeds`) set or, by `gone`, left out."""

    def text(changes: dict[str, Any] | None = None) -> str:
        data = copy.deepcopy(parse_yaml(TINY.replace("CORPUS", str(corpus)), "tiny"))
        for path, value in (changes or {}).items():
            node, (*parents, last) = data, path.split(".")
            for part in parents:
                node = node.setdefault(part, {})
            if value is _GONE:
                node.pop(last, None)
            else:
                node[last] = value
        return dump_yaml(data)

    return text


@pytest.fixture
def tiny(tiny_text: Callable[..., str]) -> Study:
    return load_study(tiny_text())


@pytest.fixture
def finish() -> Callable[..., None]:
    """Write the results that trainers would leave: a loss a variant, or a status."""

    def write(run: Run, trials: Iterable[Trial], outcome: Callable[[Trial], float | Status]) -> None:
        for trial in trials:
            told = outcome(trial)
            loss = told if isinstance(told, float) else None
            result = TrialResult(
                run_name=trial.key.name,
                fingerprint=trial.fingerprint,
                status=Status.COMPLETED if isinstance(told, float) else told,
                reason="as told",
                seed=trial.seed,
                final_val_loss=loss,
                final_val_perplexity=None if loss is None else 2.718281828**loss,
                cost_usd=0.25,
            )
            run.storage.write_json(f"{trial.key.folder}/config.json", run.run_spec(trial).model_dump(mode="json"))
            run.storage.write_json(f"{trial.key.folder}/result.json", result.model_dump(mode="json"))

    return write
