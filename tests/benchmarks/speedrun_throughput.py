"""How fast the speedrun's baseline trains: tokens a second and MFU of `podium.trainer` itself, in fresh processes.

    python tests/benchmarks/speedrun_throughput.py                          # 3 processes of 20 + 200 steps
    python tests/benchmarks/speedrun_throughput.py --sweep --steps 12       # which settings pay, one process each
    python tests/benchmarks/speedrun_throughput.py --small                  # whether it works, on a CPU in a minute

A bare checkout will do, with torch ≥ 2.11, numpy, pydantic, pyyaml and safetensors. What runs is the trainer itself
(`podium.trainer.builtin.run.train`) on 12 layers of 768 and 524,288 tokens a step, as `facts/trainer.md` §1 asks for a
fair comparison: the loader and the optimizer inside the clock; compilation, evaluation and checkpoints outside and
reported; the first steps untimed.

The tokens are random, each drawn by Zipf's law, so that the loss after the fixed steps is known to come near their
entropy: a fast trainer that learns nothing fails. MFU is of the H100's and H200's 989 dense bf16 TFLOP/s by
6·N + 12·L·d·T FLOP a token (nanoGPT's), and with attention counted causal (half of the second term).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "src"))

import numpy as np  # noqa: E402  after the path
import numpy.typing as npt  # noqa: E402

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "GH200": 989.0, "A100": 312.0, "L40S": 362.0, "L40": 181.0}
"""Dense bf16, by NVIDIA's datasheets; L40 with fp32 accumulation."""
TOKENS = 50257
ANCHOR = "490k tokens/s, 42.3 % MFU on one H200 (modded-nanogpt track 3, 20260517_ortho)"
SWEEP: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "not deterministic": {"deterministic": False},
    "flash attention": {"deterministic": False, "attention": "flash"},
    "cuDNN attention": {"deterministic": False, "attention": "cudnn"},
    "cuDNN, bf16 residual": {"deterministic": False, "attention": "cudnn", "residual": "autocast"},
    "… autotuned": {
        "deterministic": False, "attention": "cudnn", "residual": "autocast",
        "compile_mode": "max-autotune-no-cudagraphs",
    },
    "… tuned by descent": {
        "deterministic": False, "attention": "cudnn", "residual": "autocast", "tune_kernels": True,
    },
    "… 32 sequences a pass": {
        "deterministic": False, "attention": "cudnn", "residual": "autocast", "micro_batch": 32,
    },
    "… 128 a pass, logits by 16k": {
        "deterministic": False, "attention": "cudnn", "residual": "autocast", "micro_batch": 128,
        "head_chunk": 16384,
    },
    "… 64 a pass, logits by 16k": {
        "deterministic": False, "attention": "cudnn", "residual": "autocast", "head_chunk": 16384,
    },
}  # fmt: skip
"""What `--sweep` tries: changes to the flags' defaults."""


def main() -> None:
    """Start the processes one after another and print what they found."""
    options = parse()
    if options.child:
        print(json.dumps(measure(options)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="podium-throughput-") as scratch:
        data = Path(scratch) / "data"
        entropy = write_tokens(data, options)
        if options.sweep:
            report = {name: run_child(options, data, {**changes}) for name, changes in SWEEP.items()}
            print_sweep(report)
            write(options, {"entropy": entropy, "sweep": report})
            return
        found = [run_child(options, data, {}) for _ in range(options.processes)]
    broken = [each for each in found if "error" in each]
    if broken:
        raise SystemExit(f"{len(broken)} of {len(found)} processes failed: {broken[0]['error']}")
    summary = summarise(found, entropy)
    print_summary(summary, options)
    write(options, {"summary": summary, "processes": found})
    if not summary["learned"]:
        raise SystemExit(f"the loss {summary['loss']:.3f} is not near the tokens' entropy {entropy:.3f}: it is wrong")


def parse() -> argparse.Namespace:
    """The flags; each setting that may pay has one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="timed optimizer steps")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before them")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes")
    parser.add_argument("--sweep", action="store_true", help="one process for each of several settings")
    parser.add_argument("--small", action="store_true", help="2 layers of 64 on a CPU: whether it works")
    parser.add_argument("--micro-batch", type=int, default=64, help="sequences of a forward pass")
    parser.add_argument("--compile", default="always", choices=("always", "never"))
    parser.add_argument(
        "--compile-mode", default="default",
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    )  # fmt: skip
    parser.add_argument("--tune-kernels", action="store_true", help="coordinate descent")
    parser.add_argument("--attention", default="auto", choices=("auto", "cudnn", "flash"))
    parser.add_argument("--deterministic", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--residual", default="fp32", choices=("fp32", "autocast"))
    parser.add_argument("--head-chunk", type=int, help="tokens whose logits exist at once")
    parser.add_argument("--block", default="sequential", choices=("sequential", "palm"))
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adamw"))
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its name is not known here")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one process")
    parser.add_argument("--json", type=Path, help="write everything that was found there")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """Sizes of model and batch."""
    if options.small:
        return {"d_model": 64, "n_layers": 2, "n_heads": 2, "vocab": 512, "length": 64, "sequences": 16, "micro": 8}
    return {
        "d_model": 768, "n_layers": 12, "n_heads": 6, "vocab": 50304, "length": 1024, "sequences": 512,
        "micro": options.micro_batch,
    }  # fmt: skip


def write_tokens(folder: Path, options: argparse.Namespace) -> float:
    """Shards of random tokens for all steps, as a prepared dataset; returns the entropy of a token in nats."""
    from podium.trainer.builtin.data.manifest import Manifest, Split
    from podium.trainer.builtin.data.shards import ShardWriter

    sizes = shape(options)
    most = min(TOKENS, sizes["vocab"])
    weights = 1 / (np.arange(most) + 2.7)
    share = weights / weights.sum()
    per_step = sizes["sequences"] * sizes["length"]
    folder.mkdir(parents=True)
    rng, splits = np.random.default_rng(0), {}
    # as many as are read once; but 20 steps' worth at least are written in seconds
    for name, count in (("train", per_step * (options.steps + options.warm_up) + 1), ("validation", 2**16 + 1)):
        with ShardWriter(folder, name) as writer:
            for start in range(0, count, 2**22):
                writer.append(draw(rng, share, min(2**22, count - start)))
        splits[name] = Split(tokens=count, bytes=None, documents=None, shards=writer.shards)
    manifest = Manifest(
        fingerprint="random-tokens", corpus="random tokens by Zipf's law", corpus_fingerprint="zipf",
        vocab_size=sizes["vocab"], tokenizer_size=most, end_of_text=0, splits=splits, files={},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return float(-(share * np.log(share)).sum())


def draw(rng: np.random.Generator, share: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.uint16]:
    """Independent tokens."""
    found: npt.NDArray[np.int64] = np.searchsorted(share.cumsum(), rng.random(count)).clip(max=len(share) - 1)
    return found.astype(np.uint16)


def run_child(options: argparse.Namespace, data: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """One fresh process with these changes to the flags; its measurement, or its last words under `error`."""
    merged = {**vars(options), **changes}
    arguments = [sys.executable, __file__, "--child", str(data)]
    for name, value in merged.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("child", "json", "sweep", "processes", "timeout") or value is None or value is False:
            if name == "deterministic":
                arguments.append("--no-deterministic")
        elif value is True:
            arguments.append(flag)
        else:
            arguments += [flag, str(value)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=options.timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {options.timeout:g} s"}
    if done.returncode:
        return {"error": "\n".join((done.stdout + done.stderr).strip().splitlines()[-4:])}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {found['tokens_per_second']:,.0f} tokens/s, compiled in {found['compile_seconds']:.0f} s", flush=True)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: the trainer's own run, and what its result says."""
    import torch

    from podium.trainer.builtin.config import RunSpec, load_config
    from podium.trainer.builtin.run import train
    from podium.trainer.trial.recorder import LogReporter
    from podium.trainer.trial.storage import open_storage

    sizes, on_gpu = shape(options), torch.cuda.is_available()
    muon = {"name": "muon", "learning_rate": 0.0018, "rest": {"learning_rate": 0.0036}}
    config = load_config(
        {
            "model": {
                "family": "speedrun", "vocab_size": sizes["vocab"], "d_model": sizes["d_model"],
                "n_layers": sizes["n_layers"], "n_heads": sizes["n_heads"], "block": options.block,
                "residual": options.residual,
            },
            "data": {"sequence_length": sizes["length"], "order": "sequential"},
            "optimizer": muon if options.optimizer == "muon" else {"learning_rate": 0.0018, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup_fraction": 0.0},
            "batch": {"sequences": sizes["sequences"], "micro_batch": sizes["micro"]},
            "max_steps": options.warm_up + options.steps,
            "max_grad_norm": None,
            "evaluation": {"every_steps": options.warm_up + options.steps, "batch_sequences": 16},
            "checkpoint": {"every_steps": options.warm_up + options.steps, "keep_last": 1},
            "runtime": {
                "precision": "bf16" if on_gpu else "fp32", "compile": options.compile,
                "compile_mode": options.compile_mode, "tune_kernels": options.tune_kernels,
                "deterministic": options.deterministic, "attention": options.attention,
                "head_chunk_tokens": options.head_chunk, "untimed_steps": options.warm_up,
                "threads": 1 if options.small else None,
            },
        }
    )  # fmt: skip

    class Quiet(LogReporter):
        def say(self, text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        evaluated = progress = lambda *_: None  # type: ignore[assignment]

    with tempfile.TemporaryDirectory(prefix="podium-throughput-") as scratch:
        spec = RunSpec(config=config, dataset=f"file://{options.child}")
        result = train(spec, open_storage(scratch), reporter=Quiet())
    assert result.parameters is not None
    parameters = result.parameters.total
    attention = 12 * sizes["n_layers"] * sizes["d_model"] * sizes["length"]
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = options.peak_tflops or next((PEAK_TFLOPS[key] for key in PEAK_TFLOPS if key in name.split()), None)
    speed = result.tokens_per_second
    assert speed is not None
    return {
        "tokens_per_second": speed,
        "mfu": speed * (6 * parameters + attention) / peak / 1e12 if peak else None,
        "mfu_causal": speed * (6 * parameters + attention / 2) / peak / 1e12 if peak else None,
        "milliseconds_a_step": 1000 * sizes["sequences"] * sizes["length"] / speed,
        "loss": result.final_train_loss,
        "val_loss": result.final_val_loss,
        "steps": result.steps,
        "compile_seconds": result.compile_seconds,
        "untimed_seconds": result.untimed_seconds,
        "evaluation_seconds": result.evaluation_seconds,
        "checkpoint_seconds": result.checkpoint_seconds,
        "peak_memory_gb": (result.peak_memory_bytes or 0) / 1e9,
        "parameters": parameters,
        "device": name,
        "peak_tflops": peak,
        "torch": torch.__version__,
        "commit": os.environ.get("PODIUM_COMMIT"),
    }


def summarise(found: list[dict[str, Any]], entropy: float) -> dict[str, Any]:
    """Median and quartiles over processes, and whether the loss came near what can be learned."""
    speeds = sorted(each["tokens_per_second"] for each in found)
    middle = statistics.median(speeds)
    quartiles = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else [middle] * 3
    nearest = min(found, key=lambda each: abs(each["tokens_per_second"] - middle))
    worst = max(each["val_loss"] for each in found)
    return {
        **nearest,
        "tokens_per_second": middle,
        "quartiles": [quartiles[0], quartiles[2]],
        "processes": len(found),
        "entropy": entropy,
        "loss": worst,
        # few steps leave it a little above; below the entropy nothing can be that has not seen the answers
        "learned": entropy - 0.1 < worst < entropy + 1.0,
    }


def print_summary(summary: dict[str, Any], options: argparse.Namespace) -> None:
    """The figures, for RESULTS.md."""

    def percent(value: float | None) -> str:
        return "unknown (give --peak-tflops)" if value is None else f"{100 * value:.1f} %"

    low, high = summary["quartiles"]
    print(f"device            {summary['device']}, torch {summary['torch']}")
    print(f"model             {summary['parameters']:,} parameters; {options.optimizer}, {options.block} blocks")
    print(f"tokens/s          {summary['tokens_per_second']:,.0f} (median of {summary['processes']} processes;"
          f" quartiles {low:,.0f} to {high:,.0f})")  # fmt: skip
    print(f"a step            {summary['milliseconds_a_step']:.1f} ms; {options.steps} timed after {options.warm_up}")
    print(f"MFU               {percent(summary['mfu'])} by 6N + 12LdT; {percent(summary['mfu_causal'])} causal")
    print(f"loss              {summary['loss']:.4f} after {summary['steps']} steps; the tokens' entropy"
          f" {summary['entropy']:.4f}")  # fmt: skip
    print(f"outside the clock {summary['compile_seconds']:.1f} s compiling, {summary['evaluation_seconds']:.1f} s"
          f" evaluating, {summary['checkpoint_seconds']:.1f} s checkpoints")  # fmt: skip
    print(f"peak memory       {summary['peak_memory_gb']:.1f} GB")
    print(f"anchor            {ANCHOR}")


def print_sweep(report: dict[str, dict[str, Any]]) -> None:
    """The settings, the fastest first."""
    good = {name: found for name, found in report.items() if "error" not in found}
    for name, found in sorted(good.items(), key=lambda item: -item[1]["tokens_per_second"]):
        mfu = "" if found["mfu"] is None else f"  {100 * found['mfu']:5.1f} % MFU"
        print(
            f"{name:<28} {found['tokens_per_second']:>9,.0f} tokens/s{mfu}  {found['peak_memory_gb']:6.1f} GB"
            f"  compiled in {found['compile_seconds']:.0f} s  loss {found['val_loss']:.4f}"
        )
    for name, found in report.items():
        if "error" in found:
            print(f"{name:<28} failed: {found['error']}")


def write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Everything as JSON, where that was asked for."""
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
