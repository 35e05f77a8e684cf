"""What the step shakedown does: two short runs of the baseline on the prepared data, and the checks of what they left.

The first run takes all steps; the second starts from what a run killed half way would have left (the checkpoint and
the metrics up to it) and must take the same second half. A gate that passed is not run again.
"""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from podium.components.launch.foreign_trials import copy_object
from podium.components.launch.launcher import Launcher, Task, TaskEnd, trial_command
from podium.components.launch.open import open_launcher, run_task
from podium.components.launch.tracker import Tracker
from podium.components.study.design import baseline
from podium.components.study.fingerprint import canonical_hash, trial_fingerprint
from podium.components.study.layout import LEASE, LOGS, SHAKEDOWN
from podium.components.study.run import Run, passed
from podium.components.study.trials import gate_stages, run_usd, stage_seeds, trial_config, usd_of_seconds
from podium.trainer.builtin.config import RunSpec, ScheduleConfig, TrainConfig
from podium.trainer.builtin.model_config import RouterConfig
from podium.trainer.trial.errors import ExitCode
from podium.trainer.trial.lease import TOKEN_VARIABLE, Lease
from podium.trainer.trial.result import CHECKPOINTS, CONFIG, METRICS, SYNC, Status, read_metrics, read_result
from podium.trainer.trial.routing_metrics import routing_of
from podium.trainer.trial.section import Section
from podium.trainer.trial.stopping import StopRules
from podium.trainer.trial.storage import Storage, join_uri
from podium.trainer.trial.sync import mlflow_uri

# The gate's checks, each a function of the files of two short runs: `whole` ran all steps in one go, `resumed` started
# from its checkpoint half way and repeated the second half.

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
        self.result, self.resumed_result = read_result(whole), read_result(resumed)
        self.lines, self.resumed_lines = read_metrics(whole), read_metrics(resumed)


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
    sent = shaken.whole.read_json(SYNC, {}).get("run_id")
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


FOLDER = "shakedown"
WHOLE, RESUMED = "whole", "resumed"
LOG = f"{LOGS}/shakedown.log"
STARTS = 2
"""Times that each of the two runs is started before a crash is the gate's answer."""


def shakedown(run: str, store: str, launcher: str, gpus: str) -> str:
    """Run the gate of a run: `pass` or `fail`, with every check in shakedown.json and the ledger.

    `gpus` is what the step's pod requests; the gate runs on what one trial of the first stage takes. Raises UserError
    where no device serves.
    """
    opened = Run.open(store, run)
    gate = opened.read_json(SHAKEDOWN)
    if gate is not None and passed(gate):
        return "pass"
    resources = next(iter(opened.study.stages.values())).resources
    with ExitStack() as stack:
        lease = Lease(opened.storage, LEASE, what=f"run {opened.id}", token=os.environ.get(TOKEN_VARIABLE) or None)
        stack.enter_context(lease)
        starter = open_launcher(launcher, opened, FOLDER, resources, parallel=1)
        stack.callback(starter.close)
        starter.clear()
        opened.storage.delete_folder(FOLDER)
        modes = gate_stages(opened.study)
        checks: list[Check] = []
        seconds = 0.0
        for number, (mode, stage) in enumerate(modes.items()):
            spec = gate_spec(opened, stage)
            folder = f"{FOLDER}/{mode}" if number else FOLDER
            with Tracker(opened, FOLDER, FOLDER, mlflow_uri(store)):
                attempts = _run_twice(opened, folder, starter, spec, resources.gpus_per_trial)
            seconds += sum(each.seconds for each in attempts)
            checks += _checks(opened.storage.child(folder), spec, attempts, f"{mode}: " if len(modes) > 1 else "")
            if any(check.required and not check.passed for check in checks):
                break  # what comes after it is not paid either
        return _record(opened, checks, seconds * resources.devices, len(modes))


def _checks(folder: Storage, spec: RunSpec, attempts: list[TaskEnd], prefix: str) -> list[Check]:
    found = run_checks(Shaken(spec.config, folder.child(WHOLE), folder.child(RESUMED)))
    if attempts[-1].code != 0:
        found.append(_crash(attempts[-1]))
    return [check.model_copy(update={"name": f"{prefix}{check.name}"}) for check in found]


def gate_page(run: str, store: str) -> str:
    """The gate's record as Markdown: what Kubeflow's page of the step shows, first of all why it failed."""
    gate = Run.open(store, run).read_json(SHAKEDOWN) or {}
    head = f"## Shakedown: {'passed' if passed(gate) else 'failed'}\n\n{gate.get('reason', 'no record')}\n"
    marks = {True: "✓", False: "✗"}
    checks = gate.get("checks", [])
    rows = [f"| {marks[check['passed']]} | {check['name']} | {_cell(check['detail'])} |" for check in checks]
    return "\n".join([head, "| | check | what was found |", "|---|---|---|", *rows]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def gate_spec(run: Run, stage: str | None = None) -> RunSpec:
    """What both runs are given: a stage's baseline, by default the first's, for a few steps, saved often."""
    study, stage = run.study, stage or run.stages[0]
    control = baseline(study)
    trial = trial_config(study, stage, control, stage_seeds(study, stage)[0])
    steps = study.shakedown.steps
    config = TrainConfig.model_validate(
        trial.model_dump()
        | {
            "max_steps": steps,
            "max_tokens": None,
            "schedule": _shortened(trial.schedule, trial.steps),
            "evaluation": trial.evaluation.model_copy(update={"every_steps": steps // 2}),
            "checkpoint": trial.checkpoint.model_copy(update={"every_steps": steps // 4}),
            "stop": StopRules(),
            "router": _often(trial.router, steps // 2) if trial.mode == "moe" else None,
        }
    )
    return RunSpec(
        config=config,
        dataset=run.dataset_uri(control),
        fingerprint=trial_fingerprint(config, run.dataset_fingerprint(control), run_id=run.id),
        watch=join_uri(run.uri, LEASE),
        labels={
            "study": study.name,
            "run_id": run.id,
            "stage": FOLDER,
            "variant": control.name,
            "seed": str(config.seed),
        },
    )


def _shortened(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    """The same shape over any number of steps."""
    if schedule.warmdown_steps is None:
        return schedule
    share = schedule.warmdown_steps / steps
    return schedule.model_copy(update={"warmdown_steps": None, "warmdown_fraction": share})


def _often(router: RouterConfig | None, steps: int) -> RouterConfig:
    router = router or RouterConfig()
    return router.model_copy(update={"log_every_steps": min(router.log_every_steps, steps)})


def _run_twice(run: Run, place: str, launcher: Launcher, spec: RunSpec, devices: int) -> list[TaskEnd]:
    """Both runs, one after the other; the second only where the first got to its end. Every attempt, in order."""
    folder = run.storage.child(place)
    whole, resumed = folder.child(WHOLE), folder.child(RESUMED)
    half = spec.config.steps // 2
    whole.write_json(CONFIG, spec.model_dump(mode="json"))
    attempts = _run(run, f"{place}/{WHOLE}", launcher, devices)
    if attempts[-1].code != 0 or not whole.exists(f"{CHECKPOINTS}/ckpt-step-{half}.pt"):
        return attempts
    # what a run that was killed half way leaves behind
    copy_object(whole, resumed, f"{CHECKPOINTS}/ckpt-step-{half}.pt")
    lines = whole.read_text(METRICS).splitlines(keepends=True)
    resumed.write_text(METRICS, "".join(line for line in lines if json.loads(line)["step"] <= half))
    resumed.write_json(CONFIG, spec.model_dump(mode="json"))
    return attempts + _run(run, f"{place}/{RESUMED}", launcher, devices)


def _run(run: Run, folder: str, launcher: Launcher, devices: int) -> list[TaskEnd]:
    """Start a run until it ends by itself; a crash may be the machine's fault once."""
    attempts: list[TaskEnd] = []
    for _ in range(STARTS):
        task = Task(
            name=folder,
            argv=trial_command(join_uri(run.uri, folder)),
            log=LOG,
            devices=devices,
            attempt=len(attempts) + 1,
            identity=uuid.uuid4().hex,  # a gate begins anew: what an earlier one left is not this one's
            folder=folder,
        )
        attempts += run_task(run, launcher, task)
        if attempts[-1].code in (0, ExitCode.USER_ERROR):
            break
    return attempts


def _crash(ended: TaskEnd) -> Check:
    tail = "\n".join(ended.tail)
    return Check(name="ended well", passed=False, detail=f"{ended.task.name} ended with code {ended.code}:\n{tail}")


def _record(run: Run, checks: list[Check], device_seconds: float, runs: int) -> str:
    failed = [check for check in checks if check.required and not check.passed]
    reason = "; ".join(f"{check.name}: {check.detail}" for check in failed)
    price = run.study.shakedown.price
    usd = usd_of_seconds(price, device_seconds)
    gate = {
        "passed": not failed,
        "reason": reason or f"all of {sum(check.required for check in checks)} checks passed",
        "checks": [check.model_dump(mode="json") for check in checks],
        "device_seconds": round(device_seconds, 3),
        "cost_usd": round(usd if usd is not None else runs * (run_usd(price, 1) or 0.0), 6),
    }
    outcome = "pass" if not failed else "fail"
    # A gate that failed may fail again for another reason, and each time is news.
    key = outcome if not failed else f"{outcome}/{canonical_hash([check.name for check in failed], 12)}"
    run.ledger.append("gate", f"{FOLDER}/{key}", **gate)
    run.storage.write_json(SHAKEDOWN, gate)
    print(f"shakedown: {outcome}: {gate['reason']}", flush=True)
    return outcome
