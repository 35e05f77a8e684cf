"""What the optimizer costs at the time-to-target study's shape: Newton-Schulz, Polar Express and AdamW at 155M.

Two measurements, each in rounds that go through all options in a random order, so that a slow minute of the machine
hits every one: the optimizer's step alone, on gradients made beforehand; and the trainer's whole step (forward,
backward, optimizer, projection onto the sphere) in tokens a second, on random tokens. Median and quartiles over rounds.
Model FLOP utilisation counts 6·N + 12·L·d·T a token, N the parameters of matrix products (the output included), beside
the causal convention with half of the attention.

    python tests/benchmarks/optimizer_step.py                       the study's shape, compiled on a GPU
    python tests/benchmarks/optimizer_step.py --shape tiny --rounds 3 --steps 2      to see that it works, on any CPU
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from podium.trainer.builtin.config import AdamWConfig, MuonConfig, OptimizerConfig
from podium.trainer.builtin.model_config import NgptConfig
from podium.trainer.builtin.models.build import build_model
from podium.trainer.builtin.optim.build import Optimizer, build_optimizer
from podium.trainer.builtin.setup import Precision, Stepper, after_step, choose_device, choose_precision

SHAPES: dict[str, dict[str, Any]] = {
    "study": {"model": {"vocab_size": 50304}, "tokens": 1024, "sequences": 32, "micro": 16},
    "tiny": {
        "model": {"vocab_size": 512, "d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 160},
        "tokens": 64,
        "sequences": 4,
        "micro": 2,
    },
}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 products, by what the device's name has in it."""


def options() -> dict[str, OptimizerConfig]:
    """What is compared; the learning rate is 0, so that weights stay what they are."""

    def muon(**more: Any) -> MuonConfig:
        return MuonConfig(name="muon", learning_rate=1e-12, **more)

    return {
        "adamw": AdamWConfig(learning_rate=1e-12),
        "newton_schulz": muon(orthogonalization="newton_schulz"),
        "polar_express": muon(orthogonalization="polar_express"),
        "polar_express, VR": muon(orthogonalization="polar_express", variance_reduction=True),
        "polar_express, CWD": muon(orthogonalization="polar_express", cautious_weight_decay=True),
        "polar_express, VR, CWD": muon(
            orthogonalization="polar_express", variance_reduction=True, cautious_weight_decay=True
        ),
    }


def step_alone(optimizer: Optimizer, model: torch.nn.Module) -> Callable[[], None]:
    """The optimizer's step on gradients that stay."""
    gradients = {parameter: torch.randn_like(parameter) * 1e-3 for parameter in model.parameters()}

    def step() -> None:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        optimizer.step()

    return step


def whole_step(
    optimizer: Optimizer, model: torch.nn.Module, precision: Precision, shape: dict[str, Any]
) -> Callable[[], None]:
    """The trainer's step on random tokens, projection included."""
    micro = shape["micro"] * shape["tokens"]
    stepper = Stepper(model, optimizer, precision, micro_tokens=micro, max_grad_norm=None)
    drawn = np.random.default_rng(0).integers(
        0, shape["model"]["vocab_size"], (shape["sequences"], shape["tokens"] + 1)
    )
    x_BT, y_BT = drawn[:, :-1].astype(np.int64), drawn[:, 1:].astype(np.int64)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        stepper.step(1e-12, x_BT, y_BT)
        after_step(model, count)

    return step


def measure(
    steps: dict[str, Callable[[], None]], *, rounds: int, count: int, wait: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds a step of every option, a figure a round; the first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for number in range(rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            wait()
            began = time.perf_counter()
            for _ in range(count):
                steps[name]()
            wait()
            if number:
                found[name].append((time.perf_counter() - began) / count)
    return found


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {"ms": 1e3 * middle, "ms_low": 1e3 * low, "ms_high": 1e3 * high}


def flops_per_token(config: NgptConfig, tokens: int, *, causal: bool) -> float:
    """Of training, by the usual count."""
    counts = config.parameter_counts()
    products = counts.attention + counts.feed_forward + counts.output
    attention = 12 * config.n_layers * config.d_model * tokens
    return 6 * products + attention * (0.5 if causal else 1.0)


def main() -> None:
    """Measure, print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="study")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of each option in a round")
    parser.add_argument("--eager", action="store_true", help="do not compile, which a GPU does by default")
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    device = choose_device(given.device)
    precision = choose_precision("auto", device)
    compiled = device.type == "cuda" and not given.eager
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    config = NgptConfig(family="ngpt", **shape["model"])
    torch.manual_seed(0)
    model = build_model(config).to(device)
    if compiled:
        model.compile()
    optimizers = {name: build_optimizer(model, each, compiled=compiled) for name, each in options().items()}
    for optimizer in optimizers.values():
        optimizer.warm_up()
    alone = {name: step_alone(optimizer, model) for name, optimizer in optimizers.items()}
    seconds_alone = measure(alone, rounds=given.rounds, count=given.steps, wait=wait)
    whole = {name: whole_step(optimizer, model, precision, shape) for name, optimizer in optimizers.items()}
    seconds_whole = measure(whole, rounds=given.rounds, count=given.steps, wait=wait)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    batch = shape["sequences"] * shape["tokens"]
    rows = {}
    for option in optimizers:
        speed = batch / statistics.median(seconds_whole[option])
        used = {
            kind: None if peak is None else speed * flops_per_token(config, shape["tokens"], causal=causal) / peak
            for kind, causal in (("mfu", False), ("mfu_causal", True))
        }
        rows[option] = {
            "optimizer": summary(seconds_alone[option]),
            "whole": summary(seconds_whole[option]) | {"tokens_per_second": speed} | used,
        }
    total = config.parameter_counts().total
    print(f"{total:,} parameters, {batch} tokens a step, {name}, {precision.dtype}, compiled: {compiled}")
    print("| option | optimizer step, ms | quartiles | whole step, ms | tokens/s | MFU | MFU causal |")
    print("|---|---|---|---|---|---|---|")
    for option, row in rows.items():
        step, all_of = row["optimizer"], row["whole"]
        shown = ["–" if all_of[kind] is None else f"{all_of[kind]:.1%}" for kind in ("mfu", "mfu_causal")]
        print(
            f"| {option} | {step['ms']:.2f} | {step['ms_low']:.2f} to {step['ms_high']:.2f} | {all_of['ms']:.2f} "
            f"| {all_of['tokens_per_second']:,.0f} | {shown[0]} | {shown[1]} |"
        )
    print(json.dumps({"device": name, "torch": torch.__version__, "parameters": total, "rows": rows}))


if __name__ == "__main__":
    main()
