"""What the gate looks at: each check is a function of what two short runs left behind.

`whole` ran all steps in one go; `resumed` started from its checkpoint half way and did the second half again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from podium.trainer.config import TrainConfig
from podium.trainer.curve import read_lines
from podium.trainer.errors import NotFoundError
from podium.trainer.gpt2_config import RouterConfig
from podium.trainer.result import Status, TrialResult
from podium.trainer.routing_metrics import routing_of
from podium.trainer.section import Section
from podium.trainer.storage import Storage

CHECKPOINTS = "checkpoints"
RESUME_TOLERANCE = 0.02
"""Nats by which a step's loss may differ after a resume on a device whose kernels are not deterministic; 0 on a CPU."""


class Check(Section):
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str
    """What was found, with its numbers."""
    required: bool = True
    """Whether the gate fails with it; the others inform."""


class Shaken:
    """What the two runs left, read once."""

    def __init__(self, config: TrainConfig, whole: Storage, resumed: Storage) -> None:
        """The folders of the two runs; `config` is what both were given."""
        self.config, self.half = config, config.steps // 2
        self.whole, self.resumed = whole, resumed
        self.result, self.resumed_result = _result(whole), _result(resumed)
        self.lines, self.resumed_lines = _lines(whole), _lines(resumed)


def trained(shaken: Shaken) -> Check:
    """The run took every step."""
    result = shaken.result
    done = result is not None and result.status is Status.COMPLETED and result.steps == shaken.config.steps
    how = "no result" if result is None else f"{result.status.value} after {result.steps} steps: {result.reason}"
    return Check(name="trained", passed=done, detail=how)


def finite_losses(shaken: Shaken) -> Check:
    """Every step's loss, and those of the declared evaluations, are numbers."""
    found = {"train_loss": _values(shaken.lines, "train_loss"), "val_loss": _values(shaken.lines, "val_loss")}
    expected = {"train_loss": shaken.config.steps, "val_loss": len(_schedule(shaken.config, "evaluation"))}
    wrong = [
        f"{sum(value is not None for value in values)} of {expected[name]} {name} finite"
        for name, values in found.items()
        if len(values) != expected[name] or any(value is None or not math.isfinite(value) for value in values)
    ]
    losses = f"train_loss {_shown(found['train_loss'][-1:])}, val_loss {_shown(found['val_loss'][-1:])} at the end"
    return Check(name="finite losses", passed=not wrong, detail="; ".join(wrong) or losses)


def checkpoints(shaken: Shaken) -> Check:
    """Full checkpoints are there on schedule, and the final model with its sidecar."""
    there = set(shaken.whole.list(CHECKPOINTS))
    expected = [f"{CHECKPOINTS}/ckpt-step-{step}.pt" for step in _schedule(shaken.config, "checkpoint")]
    expected += [f"{CHECKPOINTS}/final-model.{ending}" for ending in ("safetensors", "json")]
    missing = [name for name in expected if name not in there]
    detail = f"missing: {', '.join(missing)}" if missing else f"{len(expected)} files on schedule"
    return Check(name="checkpoints", passed=not missing, detail=detail)


def resume(shaken: Shaken) -> Check:
    """A run that starts from the checkpoint half way goes on from that step and takes the same steps again."""
    result, half = shaken.resumed_result, shaken.half
    if result is None or result.status is not Status.COMPLETED or result.steps != shaken.config.steps:
        how = "no result" if result is None else f"{result.status.value} after {result.steps} steps: {result.reason}"
        return Check(name="resume", passed=False, detail=f"resumed at step {half}: {how}")
    before, after = _by_step(shaken.lines), _by_step(shaken.resumed_lines)
    if before.keys() != after.keys():
        detail = f"steps differ: {_span(before)} in one go, {_span(after)} with a resume at {half}"
        return Check(name="resume", passed=False, detail=detail)
    worst = max((abs(after[step] - before[step]) for step in before if step > half), default=math.inf)
    # A resume is bit-exact on a CPU. Elsewhere is CUDA, which the result names, or Apple's GPU.
    on_cpu = result.versions is not None and result.versions.cuda is None and sys.platform == "linux"
    limit = 0.0 if on_cpu else RESUME_TOLERANCE
    detail = f"largest difference of a step's loss after the resume at step {half}: {worst:.3g} nats (limit {limit:g})"
    return Check(name="resume", passed=worst <= limit, detail=detail)


def falling_loss(shaken: Shaken) -> Check:
    """The loss goes down. A few steps of warm-up need not show it, so it only informs."""
    losses = [loss for loss in _values(shaken.lines, "train_loss") if loss is not None]
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    detail = f"train_loss {first:.4f} in the first quarter, {last:.4f} in the last"
    return Check(name="falling loss", passed=bool(losses) and last < first, detail=detail, required=False)


def tracking(shaken: Shaken) -> Check:
    """Every step and evaluation is on record. MLflow may be away: what it lacks is sent later."""
    steps = sorted(_by_step(shaken.lines))
    whole = steps == list(range(1, shaken.config.steps + 1))
    try:
        sent = shaken.whole.read_json("sync.json")["run_id"]
    except NotFoundError:
        sent = None
    detail = f"metrics.jsonl has {len(steps)} of {shaken.config.steps} steps; " + (
        f"MLflow run {sent}" if sent else "not in MLflow (it did not answer, or none is configured)"
    )
    return Check(name="tracking", passed=whole, detail=detail)


def router_metrics(shaken: Shaken) -> Check:
    """Routing is on record, in every line for every layer, and no expert's share or loss is missing."""
    every = (shaken.config.router or RouterConfig()).log_every_steps
    due = list(range(every, shaken.config.steps + 1, every))
    routings = [routing for line in shaken.lines if (routing := routing_of(line)) is not None]
    wrong = [] if [r.step for r in routings] == due else [f"recorded at {[r.step for r in routings]}, due at {due}"]
    for routing in routings:
        losses = [*routing.load_balance, *routing.z]
        if any(value is None for value in losses) or not all(
            map(sum, (routing.shares(i) for i in range(len(routing.layers))))
        ):
            wrong.append(f"a loss or a layer's shares are missing at step {routing.step}")
    last = routings[-1] if routings else None
    found = "" if last is None else ", ".join(
        f"block {layer}: largest share {max(last.shares(i)):.0%}" for i, layer in enumerate(last.layers)
    )  # fmt: skip
    return Check(name="router metrics", passed=not wrong, detail="; ".join(wrong) or f"{len(due)} records; {found}")


CheckFunction = Callable[[Shaken], Check]

CHECKS: dict[str, Sequence[CheckFunction]] = {
    "dense": (trained, finite_losses, checkpoints, resume, tracking, falling_loss),
    "moe": (trained, finite_losses, checkpoints, resume, tracking, router_metrics, falling_loss),
}
"""By the model's mode: another kind of model adds its own behind these."""


def run_checks(shaken: Shaken) -> list[Check]:
    """Every check for the model's mode; those after one that shows that nothing ran would only repeat it."""
    first, *others = CHECKS[shaken.config.mode]
    found = [first(shaken)]
    return found + [check(shaken) for check in others] if found[0].passed else found


def _schedule(config: TrainConfig, what: str) -> list[int]:
    every = config.evaluation.every_steps if what == "evaluation" else config.checkpoint.every_steps
    return sorted({*range(every, config.steps + 1, every), config.steps})


def _result(folder: Storage) -> TrialResult | None:
    try:
        return TrialResult.model_validate_json(folder.read_bytes("result.json"))
    except NotFoundError:
        return None


def _lines(folder: Storage) -> list[dict[str, Any]]:
    try:
        return list(read_lines(folder.read_text("metrics.jsonl")))
    except NotFoundError:
        return []


def _values(lines: Sequence[dict[str, Any]], name: str) -> list[float | None]:
    return [line[name] for line in lines if name in line]


def _by_step(lines: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Step → training loss, infinite where it is not a number."""
    return {
        line["step"]: math.inf if line["train_loss"] is None else line["train_loss"]
        for line in lines
        if "train_loss" in line
    }


def _span(by_step: dict[int, float]) -> str:
    return f"{min(by_step)} to {max(by_step)} ({len(by_step)})" if by_step else "none"


def _shown(values: Sequence[float | None]) -> str:
    return ", ".join("none" if value is None else f"{value:.4f}" for value in values) or "none"
