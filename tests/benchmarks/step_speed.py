"""Speed of our optimizer step beside a plain loop of the same model, both at nanoGPT's shape.

The peer is what a careful author writes in one file: the same architecture and initial weights, merged QKV and gate/up
projections, `scaled_dot_product_attention`, `nn.RMSNorm`, `F.cross_entropy` on the logits, fused AdamW with weight
decay on matrices, gradients clipped by `clip_grad_norm_`, `zero_grad(set_to_none=True)`; its batches are tensors made
beforehand. Ours is the trainer's own step: loader on memory-mapped shards, stepper, learning-rate schedule, loss read.

Rounds alternate between the two in a random order, so that a slow minute of the machine hits both; the ratio is the
median over rounds of (peer's seconds / our seconds). A fast trainer that trains something else would fail: the losses
of both are compared step by step.

    python tests/benchmarks/step_speed.py --threads 2
    python tests/benchmarks/step_speed.py --compile --rounds 10
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from podium.trainer.builtin.config import TrainConfig, load_config
from podium.trainer.builtin.data.loader import SequenceLoader
from podium.trainer.builtin.data.manifest import FileEntry, Manifest, Split
from podium.trainer.builtin.data.shards import ShardWriter
from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.optim.build import learning_rate
from podium.trainer.builtin.setup import Parts, build_parts, choose_device, choose_precision
from podium.trainer.trial.storage import open_storage, sha256_of


class PlainBlock(nn.Module):
    """One block as one would write it."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, eps: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(d_model, eps=eps), nn.RMSNorm(d_model, eps=eps)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.projection = nn.Linear(d_model, d_model, bias=False)
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTD: Tensor, cos_Th: Tensor, sin_Th: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        heads = (B, T, self.n_heads, D // self.n_heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.attention_norm(x_BTD)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(rotate(q, cos_Th, sin_Th), rotate(k, cos_Th, sin_Th), v, is_causal=True)
        x_BTD = x_BTD + self.projection(y.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.feed_forward_norm(x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.down(F.silu(gate) * up)


class PlainModel(nn.Module):
    """The transformer without anything of ours."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        model = config.model
        d_model, n_layers, n_heads, d_ff = model.dimensions
        self.embedding = nn.Embedding(model.vocab_size, d_model)
        self.blocks = nn.ModuleList(PlainBlock(d_model, n_heads, d_ff, model.norm_eps) for _ in range(n_layers))
        self.norm = nn.RMSNorm(d_model, eps=model.norm_eps)
        half = d_model // n_heads // 2
        frequency = model.rope_base ** -(torch.arange(half, dtype=torch.float64) / half)
        angle = torch.outer(torch.arange(config.data.sequence_length, dtype=torch.float64), frequency)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss."""
        x_BTD = self.embedding(idx_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos, self.sin)
        logits_BTV = F.linear(self.norm(x_BTD), self.embedding.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def rotate(x_BNTH: Tensor, cos_Th: Tensor, sin_Th: Tensor) -> Tensor:
    """Rotary positions, half-split."""
    first, second = x_BNTH.chunk(2, dim=-1)
    return torch.cat((first * cos_Th - second * sin_Th, second * cos_Th + first * sin_Th), dim=-1)


def same_weights(plain: PlainModel, parts: Parts) -> None:
    """Give the peer our initial weights."""
    ours = parts.model.state_dict()
    names = {
        "attention_norm.weight": "attention_norm.gain_D",
        "feed_forward_norm.weight": "feed_forward_norm.gain_D",
        "qkv.weight": "attention.qkv.weight",
        "projection.weight": "attention.projection.weight",
        "gate_up.weight": "feed_forward.gate_up.weight",
        "down.weight": "feed_forward.projection.weight",
    }
    weights = {"embedding.weight": ours["embedding.weight"], "norm.weight": ours["norm.gain_D"]}
    for layer in range(len(plain.blocks)):
        weights |= {f"blocks.{layer}.{theirs}": ours[f"blocks.{layer}.{mine}"] for theirs, mine in names.items()}
    plain.load_state_dict(weights)


def make_data(folder: Path, vocabulary: int, tokens: int) -> None:
    """Random tokens in our shards, with frequencies like a language's."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, vocabulary + 1)
    drawn = rng.choice(vocabulary, size=tokens, p=weights / weights.sum()).astype(np.uint16)
    splits = {}
    for name, part in (("train", drawn), ("validation", drawn[:1000])):
        with ShardWriter(folder, name) as writer:
            writer.append(part)
        splits[name] = Split(tokens=len(part), bytes=len(part), documents=1, shards=writer.shards)
    files = {path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in folder.iterdir()}
    manifest = Manifest(
        fingerprint="benchmark",
        corpus="random tokens",
        corpus_fingerprint="benchmark",
        vocab_size=vocabulary,
        tokenizer_size=vocabulary,
        end_of_text=0,
        splits=splits,
        files=files,
    )
    open_storage(str(folder)).write_json("manifest.json", manifest.model_dump(mode="json"))


def our_step(parts: Parts) -> Callable[[int], float]:
    """The trainer's step, its loss read as on every step of the loop."""
    config = parts.config

    def step(number: int) -> float:
        rate = learning_rate(number, config.steps, config.optimizer.learning_rate, config.schedule)
        loss, _ = parts.stepper.step(rate, *parts.loader.next_batch())
        return loss.item()

    return step


def plain_step(
    plain: PlainModel, config: TrainConfig, data: Path, device: torch.device, *, compiled: bool, count: int
) -> Callable[[int], float]:
    """The peer's step."""
    loader = SequenceLoader(
        data,
        "train",
        sequence_length=config.data.sequence_length,
        batch_sequences=config.batch.sequences,
        seed=config.seed,
    )
    batches = [[torch.from_numpy(part).to(device) for part in loader.next_batch()] for _ in range(count)]
    matrices = [parameter for parameter in plain.parameters() if parameter.ndim >= 2]
    gains = [parameter for parameter in plain.parameters() if parameter.ndim < 2]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
    forward = torch.compile(plain) if compiled else plain
    precision = choose_precision("auto", device)

    def step(number: int) -> float:
        rate = learning_rate(number, config.steps, settings.learning_rate, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with precision.autocast():
            loss = forward(*batches[number - 1])
        loss.backward()
        assert config.max_grad_norm is not None
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def loader_seconds(parts: Parts) -> float:
    """Median seconds of one batch from the loader."""
    times = []
    for _ in range(200):
        since = time.perf_counter()
        parts.loader.next_batch()
        times.append(time.perf_counter() - since)
    return statistics.median(times)


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="paired rounds")
    parser.add_argument("--steps", type=int, default=1, help="steps of each in a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each before the clock")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="compile both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--d-ff", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=12)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    config = load_config(
        {
            "model": {
                "vocab_size": options.vocabulary,
                "d_model": options.d_model,
                "n_layers": options.layers,
                "n_heads": options.heads,
                "d_ff": options.d_ff,
            },
            "data": {"sequence_length": options.sequence_length},
            "optimizer": {"learning_rate": 1e-3},
            "batch": {"sequences": options.batch},
            "max_steps": 1000,
            "evaluation": {"every_steps": 1000},
            "runtime": {"device": options.device, "compile": "always" if options.compile else "never"},
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        make_data(data, options.vocabulary, 64 * options.batch * options.sequence_length + 1)
        parts = build_parts(config, data, choose_precision("auto", device), Ranks())
        plain = PlainModel(config).to(device)
        same_weights(plain, parts)
        count = options.warmup + options.rounds * options.steps
        steps = {
            "ours": our_step(parts),
            "plain": plain_step(plain, config, data, device, compiled=options.compile, count=count),
        }
        losses: dict[str, list[float]] = {"ours": [], "plain": []}
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        order = random.Random(0)
        number = 0
        for name, step in steps.items():
            losses[name] += [step(index) for index in range(1, options.warmup + 1)]
        number = options.warmup
        for _ in range(options.rounds):
            names = list(steps)
            order.shuffle(names)
            for name in names:
                since = time.perf_counter()
                losses[name] += [steps[name](number + index) for index in range(1, options.steps + 1)]
                seconds[name].append((time.perf_counter() - since) / options.steps)
            number += options.steps
        loading = loader_seconds(parts)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["plain"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    tokens = config.tokens_per_step
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "benchmark": "step_speed",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "compile": options.compile,
        "rounds": options.rounds,
        "ours_ms": round(median["ours"] * 1e3, 2),
        "plain_ms": round(median["plain"] * 1e3, 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "ours_tokens_per_second": round(tokens / median["ours"]),
        "plain_tokens_per_second": round(tokens / median["plain"]),
        "loader_share": round(loading / median["ours"], 6),
        "last_loss_ours": losses["ours"][-1],
        "last_loss_plain": losses["plain"][-1],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(losses["ours"], losses["plain"], strict=True)),
    }
    print(f"{'':8}{'ms/step':>10}{'tokens/s':>12}{'last loss':>12}")
    for name in steps:
        print(f"{name:8}{median[name] * 1e3:>10.1f}{tokens / median[name]:>12,.0f}{losses[name][-1]:>12.5f}")
    print(f"ratio {result['ratio']:.3f} (quartiles {quartiles[0]:.3f}–{quartiles[2]:.3f})")
    print(f"a batch from the loader takes {loading * 1e3:.3f} ms, {result['loader_share']:.4%} of a step")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
