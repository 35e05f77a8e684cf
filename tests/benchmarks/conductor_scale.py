"""How a conductor scales: many stand-in trials of milliseconds, its time a trial and its memory on the way.

    python tests/benchmarks/conductor_scale.py [--trials 1000] [--slots 4] [--json]

The stand-in is a Python process that writes metrics and a result, so the figure a trial contains its start (about
20 ms of a core). It fails where memory after the last trial is more than 1.1 × that after the 100th.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from podium.components.launch.conductor import conduct
from podium.components.launch.launcher import TaskEnd
from podium.components.launch.process import ProcessLauncher
from podium.components.study.load import load_study
from podium.components.study.run import Run

STAND_IN = Path(__file__).resolve().parents[1] / "components" / "launch" / "stand_in.py"
LIMIT = 1.1

STUDY = """
name: scale
question: Does the conductor stay small and quick?
data: {{corpus: {{source: files, path: {corpus}}}, vocab_size: 512}}
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 50}}
  optimizer: {{learning_rate: 0.001}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 10}}
  checkpoint: {{every_steps: 20}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants:
  baseline: {{}}
{variants}
stages:
  only:
    budget: {{tokens: 4000}}
    resources: {{parallel: 4}}
    price: {{usd_per_gpu_hour: 1}}
    stop: {{kill: {{criteria: [{{metric: loss, threshold: 0.5}}], span_tokens: 1000, min_tokens: 1000}}}}
    promotion: {{policy: best_mean}}
"""


class Meter(ProcessLauncher):
    """Notes the memory of this process after each end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.memory_mb: list[float] = []

    def poll(self, timeout_seconds: float) -> list[TaskEnd]:
        """See ProcessLauncher."""
        ended = super().poll(timeout_seconds)
        self.memory_mb += [resident_mb()] * len(ended)
        return ended


def resident_mb() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(trials: int, slots: int, folder: Path) -> dict[str, Any]:
    """Conduct a stage of so many trials, then conduct it again with nothing left to do."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(f"Paragraph {n} of a corpus that nobody trains on." for n in range(200)))
    rates = [f"  v{n}: {{overrides: {{optimizer.learning_rate: {n / 1e7}}}}}" for n in range(1, trials)]
    run = Run.create(str(folder / "store"), load_study(STUDY.format(corpus=corpus, variants="\n".join(rates))))
    # every seventh arm is worse, so that judging and rewriting are part of it
    run.storage.write_json("script.json", {f"v{n}": {"losses": [4.0, 4.0, 4.0, 4.0]} for n in range(7, trials, 7)})
    launcher = Meter(run.storage, slots=slots)
    started = time.perf_counter()
    outcome = conduct(run, "only", launcher, command=lambda uri: [sys.executable, "-S", str(STAND_IN), uri])
    seconds = time.perf_counter() - started
    again = time.perf_counter()
    conduct(run, "only", Meter(run.storage, slots=slots), command=lambda uri: [sys.executable, "-c", "1/0"])
    memory = launcher.memory_mb
    return {
        "trials": trials,
        "finished": outcome.finished,
        "slots": slots,
        "seconds": round(seconds, 2),
        "ms_per_trial": round(1000 * seconds / trials, 2),
        "nothing_left_seconds": round(time.perf_counter() - again, 2),
        "ledger_entries": len(run.ledger.entries()),
        "memory_mb_after_100": round(memory[min(99, trials - 1)], 1),
        "memory_mb_after_last": round(memory[-1], 1),
        "memory_ratio": round(memory[-1] / memory[min(99, trials - 1)], 3),
    }


def main() -> None:
    """Measure and print; exit with 1 where a trial has no result or memory grew too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.trials, arguments.slots, Path(folder))
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:<24} {value}" for name, value in found.items()))
    sys.exit(0 if found["finished"] == arguments.trials and found["memory_ratio"] <= LIMIT else 1)


if __name__ == "__main__":
    main()
