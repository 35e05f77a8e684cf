"""How long an asynchronous full checkpoint stalls training, for a model of 10M parameters (120 MB of state).

Two things are told apart: the stall proper, for which `save` keeps the training thread (a copy of the state), and the
slow-down of the steps that run while the file is written on another thread, which competes for processors and memory.

    python tests/benchmarks/checkpoint_stall.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from podium.trainer.builtin import loop
from podium.trainer.builtin.allocation import count_parameters, resolve_config
from podium.trainer.builtin.config import RunSpec, load_config
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.loop import Recorder
from podium.trainer.builtin.setup import build_parts, choose_device, choose_precision
from podium.trainer.builtin.state import Clock, RunState
from podium.trainer.trial.storage import open_storage


def prepare_data(folder: Path) -> str:
    """A small dataset of the library's own sources."""
    from podium.trainer.builtin.data.corpus import parse_corpus
    from podium.trainer.builtin.data.prepare import PrepareConfig, dataset_key, prepare

    (folder / "text").mkdir()
    for number, source in enumerate(sorted(Path(json.__file__).parent.glob("*.py"))):
        (folder / "text" / f"{number}.txt").write_text(source.read_text())
    config = PrepareConfig(corpus=parse_corpus(str(folder / "text")), vocab_size=512)
    manifest = prepare(config, open_storage(str(folder)))
    return str(folder / dataset_key(manifest.fingerprint))


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--folder", default=None, help="where the files go; by default a temporary folder")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    config = resolve_config(
        load_config(
            {
                "model": {
                    "vocab_size": 16000,
                    "allocation": {
                        "parameters": options.parameters,
                        "embedding_share": 0.35,
                        "glu_expansion": 2.66,
                    },
                },
                "data": {"sequence_length": 64},
                "optimizer": {"learning_rate": 1e-3},
                "batch": {"sequences": 2},
                "max_steps": 1_000_000,
                "evaluation": {"every_steps": 1000},
                "runtime": {"device": options.device},
            }
        )
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        place = Path(scratch)
        data = prepare_data(place)
        parts = build_parts(config, Path(data), choose_precision("auto", device), Ranks())
        folder = open_storage(str(place / "run"))
        clock, state = Clock(), RunState()
        stalls, during, alone, written = [], [], [], []

        def take_step() -> float:
            since = time.perf_counter()
            loss, norm = parts.stepper.step(1e-4, *parts.loader.next_batch())
            state.note_step(loss.item(), norm.item(), config.tokens_per_step)
            return time.perf_counter() - since

        with Recorder(RunSpec(config=config, dataset=data), folder, folder, place, clock) as recorder:
            recorder.start(state, None, None)
            recorder.reserve(loop.take(parts, state, clock))  # as a run does before its first step
            for _ in range(5):
                take_step()
            for _ in range(options.checkpoints):
                alone += [take_step() for _ in range(options.steps)]
                since = time.perf_counter()
                recorder.save(state, loop.take(parts, state, clock))
                stalls.append(time.perf_counter() - since)
                file = place / "run" / f"ckpt-step-{state.step}.pt"
                while not file.exists():
                    during.append(take_step())
                written.append(time.perf_counter() - since)
                size = file.stat().st_size
    counts = count_parameters(config.model)
    result = {
        "benchmark": "checkpoint_stall",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "parameters": counts.total,
        "file_mb": round(size / 1e6, 1),
        "stall_ms_median": round(statistics.median(stalls) * 1e3, 2),
        "stall_ms_largest": round(max(stalls) * 1e3, 2),
        "step_ms_alone": round(statistics.median(alone) * 1e3, 2),
        "step_ms_while_writing": round(statistics.median(during) * 1e3, 2),
        "written_after_ms": round(statistics.median(written) * 1e3, 2),
    }
    print(f"{counts.total:,} parameters, {size / 1e6:.0f} MB, {options.checkpoints} checkpoints")
    print(f"stall             median {result['stall_ms_median']} ms, largest {result['stall_ms_largest']} ms")
    print(f"step              {result['step_ms_alone']} ms alone, {result['step_ms_while_writing']} ms while writing")
    print(f"whole on disk     {result['written_after_ms']} ms after the stall began")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
