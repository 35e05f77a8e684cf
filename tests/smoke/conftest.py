"""Whole runs through the real command line, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PODIUM = str(Path(sys.executable).parent / "podium")

SECONDS_STUDY = """\
name: seconds
question: Which learning rate is better in seconds?
data:
  corpus: {source: builtin, max_bytes: 2M}
  vocab_size: 512
config:
  model: {d_model: 32, n_layers: 2, n_heads: 2, d_ff: 64}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 8}
  evaluation: {every_steps: 20, sequences: 16, batch_sequences: 16}
  checkpoint: {every_steps: 20, keep_last: 2}
  runtime: {device: cpu, precision: fp32, compile: never, threads: 1}
design: one_at_a_time
axes:
  rate: {field: optimizer.learning_rate, values: [3e-4, 1e-3, 1e-2]}
stages:
  ranking:
    budget: {steps: 120}
    resources: {parallel: 2}
    promotion: {policy: top_per_axis, combine: false}
  proof:
    budget: {steps: 120}
    seeds: 2
    proof: true
    min_seeds: 2
    resources: {parallel: 2}
    promotion: {policy: best_mean}
shakedown: {steps: 8}
evaluation: {smallbench: null, latency: false, throughput: false, max_batches: 4}
"""


def environment(**extra):
    """A process's environment: one thread, no MLflow server of the developer's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PODIUM_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


@pytest.fixture
def podium(tmp_path):
    """Runs `podium` to its end in an empty folder."""

    def run(*arguments, timeout=600, **extra):
        command = [PODIUM, *(str(argument) for argument in arguments)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(**extra),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def start(tmp_path):
    """Starts `podium` in a process group of its own, its output in `output.log`, and returns the process."""

    def launch(*arguments, **extra):
        with (tmp_path / "output.log").open("ab") as log:
            return subprocess.Popen(
                [PODIUM, *(str(argument) for argument in arguments)],
                cwd=tmp_path,
                env=environment(**extra),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    return launch


@pytest.fixture
def seconds_study(tmp_path):
    """A study whose whole run takes seconds, as a file."""
    path = tmp_path / "seconds.yaml"
    path.write_text(SECONDS_STUDY, encoding="utf-8")
    return path


@pytest.fixture
def real_text():
    """Real text for a whole study, or the text that Python brings along: that there is none is no reason to skip."""
    folder = Path(os.environ.get("PODIUM_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "wikitext-2" / "test.txt"
    return path.resolve() if path.is_file() else "builtin"
