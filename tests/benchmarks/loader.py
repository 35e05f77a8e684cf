"""What a batch costs the training loop: `SequenceLoader.next_batch` beside one training step of a small model.

Prints a table and, last, one JSON line: medians over steps, and the loader's share of a step. The step is a plain
PyTorch transformer of the nanoGPT shape (6 layers, 384 wide) on the CPU, forward, backward and AdamW; `--no-step`
leaves it out.

    python tests/benchmarks/loader.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPES = [(12, 256), (4, 256), (64, 1024), (512, 1024)]
VOCABULARY = 50304


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="tokens of the made-up split")
    parser.add_argument("--batches", type=int, default=500, help="batches timed for each shape")
    parser.add_argument("--steps", type=int, default=7, help="training steps timed")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads for the step")
    parser.add_argument("--no-step", action="store_true", help="time the loader only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), options.tokens)
        loads = {shape: time_loader(Path(folder), *shape, options.batches) for shape in SHAPES}
    step = None if options.no_step else time_step(*SHAPES[0], options.steps, options.threads)
    print(f"{'batch':<12}{'ms a batch (median)':>20}{'95 %':>10}{'tokens/s':>14}")
    rows = {}
    for (sequences, length), times in loads.items():
        median, high = statistics.median(times), float(np.quantile(times, 0.95))
        rows[f"{sequences}x{length}"] = {"median_ms": round(median * 1e3, 4), "p95_ms": round(high * 1e3, 4)}
        speed = sequences * length / median
        print(f"{f'{sequences} × {length}':<12}{median * 1e3:>20.3f}{high * 1e3:>10.3f}{speed:>14.3g}")
    share = None
    if step is not None:
        share = statistics.median(loads[SHAPES[0]]) / step
        shape = f"{SHAPES[0][0]} × {SHAPES[0][1]}"
        print(f"\na training step of {shape} takes {step * 1e3:.0f} ms; the loader is {share:.4%} of it")
    print(json.dumps({"benchmark": "loader", "shapes": rows, "step_ms": step and round(step * 1e3, 1), "share": share}))


def make_dataset(folder: Path, tokens: int) -> None:
    from podium.trainer.builtin.data.manifest import Manifest, Split
    from podium.trainer.builtin.data.shards import ShardWriter

    with ShardWriter(folder, "train", shard_tokens=tokens // 3) as writer:
        writer.append(np.random.default_rng(0).integers(0, VOCABULARY, tokens, dtype=np.uint16))
    manifest = Manifest(
        fingerprint="benchmark",
        corpus="random",
        corpus_fingerprint="",
        vocab_size=VOCABULARY,
        tokenizer_size=VOCABULARY,
        end_of_text=0,
        splits={"train": Split(tokens=tokens, bytes=tokens, documents=1, shards=writer.shards)},
        files={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def time_loader(folder: Path, sequences: int, length: int, batches: int) -> list[float]:
    from podium.trainer.builtin.data.loader import SequenceLoader

    loader = SequenceLoader(folder, "train", sequence_length=length, batch_sequences=sequences, seed=1)
    for _ in range(20):
        loader.next_batch()
    times = []
    for _ in range(max(20, batches * 12 // sequences)):
        begin = time.perf_counter()
        loader.next_batch()
        times.append(time.perf_counter() - begin)
    return times


def time_step(sequences: int, length: int, steps: int, threads: int) -> float:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    block = nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(block, 6, enable_nested_tensor=False)
    embedding = nn.Embedding(VOCABULARY, 384)
    parameters = [*body.parameters(), *embedding.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    mask = nn.Transformer.generate_square_subsequent_mask(length)
    x_BT = torch.randint(0, VOCABULARY, (sequences, length))
    times = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        logits_BTV = body(embedding(x_BT), mask=mask, is_causal=True) @ embedding.weight.T
        nn.functional.cross_entropy(logits_BTV.view(-1, VOCABULARY), x_BT.view(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
