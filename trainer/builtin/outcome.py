"""The result of a run, from what the run knows at its end."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import podium
from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.builtin.checkpoint import BEST, FINAL, full_name
from podium.trainer.builtin.config import RunSpec, TrainConfig
from podium.trainer.builtin.state import Clock, RunState
from podium.trainer.trial.result import Curve, Point, Status, TrialResult, Versions, best_point, finite, perplexity_of
from podium.trainer.trial.stopping import Ending, TargetRule, crossings
from podium.trainer.trial.storage import Storage

# What ran: recorded with every result, so that a number can be traced to code, image and device.


def versions(device: torch.device, world_size: int) -> Versions:
    """The versions of this process. Commit and image come from PODIUM_COMMIT and PODIUM_IMAGE where they are set."""
    return Versions(
        podium=podium.__version__,
        commit=os.environ.get("PODIUM_COMMIT") or _checkout_commit(),
        image=os.environ.get("PODIUM_IMAGE"),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda if device.type == "cuda" else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        threads=torch.get_num_threads(),
        world_size=world_size,
    )


def _checkout_commit() -> str | None:
    """The commit of the checkout that this file lies in; None where it is installed."""
    top = Path(__file__).resolve().parents[2]
    if not (top / ".git").exists():
        return None
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=top, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def base_result(spec: RunSpec, run_name: str, ending: Ending, attempt: int) -> TrialResult:
    """The fields that every ending has."""
    config = spec.config
    d_model, n_layers, n_heads, d_ff = config.model.dimensions
    return TrialResult(
        run_name=run_name,
        fingerprint=spec.fingerprint,
        labels=spec.labels,
        status=ending.status,
        reason=ending.reason,
        seed=config.seed,
        kill_tokens=ending.kill_tokens,
        kill_detail=ending.reason if ending.kill_tokens is not None else None,
        attempts=attempt,
        # of a user's own model only who has built it can tell
        parameters=count_parameters(config.model) if config.extension is None else None,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
    )


def full_result(
    base: TrialResult,
    ending: Ending,
    state: RunState,
    clock: Clock,
    *,
    config: TrainConfig,
    folder: Storage,
    prefix: str,
    saved_step: int | None,
    passes: float,
    device: torch.device,
    world_size: int,
) -> TrialResult:
    """All that a run which was not cut short knows; `saved_step` is its last full checkpoint's."""
    training = clock.seconds("training")
    judged = [point for point in state.points if point.tokens <= ending.tokens]
    final = judged[-1] if judged and judged[-1].tokens == ending.tokens else None
    if ending.status is Status.DIVERGED:
        final = None
    best = best_point(judged)
    best_model = f"{prefix}{BEST}.safetensors"
    # none where the file is of after what the result counts, or where another run's best was not to be had
    has_best = best is not None and best == best_point(state.points) and folder.exists(best_model)
    first = config.evaluation.every_steps
    unseen = "" if state.points else f"; no validation seen: it ended before the first evaluation, at step {first}"
    return base.model_copy(
        update={
            "reason": base.reason + unseen,
            "steps": state.step,
            "tokens": state.tokens,
            "stopped_tokens": None if ending.status is Status.COMPLETED else state.tokens,
            "passes": passes,
            "final_train_loss": state.train_loss,
            "final_val_loss": final.val_loss if final else None,
            "final_val_perplexity": _perplexity(final),
            "final_bits_per_byte": final.bits_per_byte if final else None,
            "final_val_loss_by_domain": _by_domain(final),
            "best_val_loss": best.val_loss if best else None,
            "best_val_perplexity": _perplexity(best),
            "best_step": best.step if best else None,
            **_to_target(config.stop.target, judged),
            "training_seconds": training,
            "evaluation_seconds": clock.seconds("evaluation"),
            "compile_seconds": clock.seconds("compile"),
            "checkpoint_seconds": clock.seconds("checkpoint"),
            "untimed_seconds": clock.seconds("untimed"),
            "tokens_per_second": (state.tokens - state.untimed_tokens) / training if training > 0 else None,
            "peak_memory_bytes": peak_memory_bytes(device),
            "final_model": f"{prefix}{FINAL}.safetensors",
            "best_model": best_model if has_best else None,
            "last_checkpoint": None if saved_step is None else f"{prefix}{full_name(saved_step)}",
            "versions": versions(device, world_size),
        }
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use at once: of the GPU by tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _to_target(rule: TargetRule | None, judged: Curve) -> dict[str, Any]:
    if rule is None:
        return {}
    found = crossings(judged, rule)
    seconds = next(crossing.seconds for crossing in found if crossing.loss == rule.loss)
    return {
        "target_loss": rule.loss,
        "reached_target": seconds is not None,
        "time_to_target_seconds": seconds,
        "targets": found,
    }


def _by_domain(point: Point | None) -> dict[str, float] | None:
    known = {} if point is None else {name: loss for name, loss in (point.by_domain or {}).items() if loss is not None}
    return known or None


def _perplexity(point: Point | None) -> float | None:
    return None if point is None or point.val_loss is None else finite(perplexity_of(point.val_loss))
