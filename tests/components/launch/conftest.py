"""A run of a made-up study, and a stand-in for the trainer that takes milliseconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podium.components.launch.conductor import StageOutcome, conduct
from podium.components.launch.process import ProcessLauncher
from podium.components.study.load import load_study
from podium.components.study.run import Run

STAND_IN = Path(__file__).with_name("stand_in.py")

STUDY = """
name: made-up
question: Does the conductor do what it says?
data:
  corpus: {{source: files, path: {corpus}}}
  vocab_size: 512
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 50}}
  optimizer: {{learning_rate: 0.001}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 10}}
  checkpoint: {{every_steps: 20}}
  runtime: {{device: cpu, threads: 1}}
design: list
baseline: {{variant: base}}
variants:
{variants}
stages:
  first:
    budget: {{tokens: 4000}}
    seeds: {seeds}
    min_seeds: {min_seeds}
    resources: {{parallel: {parallel}}}
    retries: {retries}
    price: {price}
    stop: {stop}
    max_broken: 5
    promotion: {{policy: best_mean}}
budget: {budget}
"""


def study_text(tmp_path: Path, **changes: Any) -> str:
    corpus = tmp_path / "corpus.txt"
    if not corpus.exists():
        corpus.write_text("\n\n".join(f"Paragraph {n} of a corpus that nobody trains on." for n in range(200)))
    names = changes.pop("names", ["a", "b", "c"])
    lines = [
        "  base: {}",
        *(f"  {name}: {{overrides: {{optimizer.learning_rate: {n / 1e6}}}}}" for n, name in enumerate(names, 1)),
    ]
    fields = {
        "corpus": corpus,
        "variants": "\n".join(lines),
        "seeds": 1,
        "min_seeds": 1,
        "parallel": 2,
        "retries": 2,
        "price": "{}",
        "stop": "{}",
        "budget": "{}",
        **changes,
    }
    return STUDY.format(**fields)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes the run of a study with these changes; `script` says what the stand-in does (see stand_in.py)."""

    def make(script: dict[str, Any] | None = None, *, store: str = "store", **changes: Any) -> Run:
        run = Run.create(str(tmp_path / store), load_study(study_text(tmp_path, **changes)))
        run.storage.write_json("script.json", script or {})
        return run

    return make


@pytest.fixture
def stand_in() -> Callable[[str], list[str]]:
    return lambda uri: [sys.executable, "-S", str(STAND_IN), uri]


@pytest.fixture
def conducted(stand_in: Callable[[str], list[str]]) -> Callable[..., StageOutcome]:
    """Conducts stage `first` of a run with the stand-in."""

    def go(run: Run, slots: int = 2, **options: Any) -> StageOutcome:
        launcher = ProcessLauncher(run.storage, slots=slots)
        return conduct(run, "first", launcher, command=stand_in, beat_seconds=0.1, **options)

    return go


@pytest.fixture
def starts() -> Callable[[Run], dict[str, int]]:
    """How often each trial of a run was started."""

    def count(run: Run) -> dict[str, int]:
        names: dict[str, int] = {}
        for key in run.storage.list("trials"):
            trial, found, _ = key.partition("/starts/")
            if found:
                names[trial.removeprefix("trials/")] = names.get(trial.removeprefix("trials/"), 0) + 1
        return names

    return count


@pytest.fixture
def entries() -> Callable[..., dict[str, Any]]:
    """The ledger's entries of a kind: key → data, which fails where a key is there twice."""

    def read(run: Run, kind: str) -> dict[str, Any]:
        found = [json.loads(run.storage.read_text(key)) for key in run.storage.list("ledger")]
        keyed = {entry["key"]: entry["data"] for entry in found if entry["kind"] == kind}
        assert len(keyed) == sum(entry["kind"] == kind for entry in found), "an entry was written twice"
        return keyed

    return read
