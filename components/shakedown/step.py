"""What the step shakedown does: two short runs of the baseline on the prepared data, and the checks of what they left.

The first run takes all steps; the second starts from what a run killed half way would have left (the checkpoint and
the metrics up to it) and must take the same second half. A gate that passed is not run again.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import ExitStack

from podium.components.launch.launcher import USER_ERROR, Ended, Launcher, Task, trial_command
from podium.components.launch.one_task import run_task
from podium.components.launch.open_launcher import open_launcher
from podium.components.launch.reuse import copy_object
from podium.components.launch.tracker import Tracker
from podium.components.shakedown.checks import CHECKPOINTS, Check, Shaken, run_checks
from podium.components.study.cost import run_usd, usd_of_seconds
from podium.components.study.design import baseline
from podium.components.study.fingerprint import canonical_hash, trial_fingerprint
from podium.components.study.layout import LEASE, SHAKEDOWN
from podium.components.study.run import Run
from podium.components.study.state import passed
from podium.components.study.trials import gate_stages, stage_seeds, trial_config
from podium.trainer.config import RunSpec, ScheduleConfig, StopRules, TrainConfig
from podium.trainer.gpt2_config import RouterConfig
from podium.trainer.lease import TOKEN_VARIABLE, Lease
from podium.trainer.storage import Storage, join_uri
from podium.trainer.sync import mlflow_uri

FOLDER = "shakedown"
WHOLE, RESUMED = "whole", "resumed"
LOG = "logs/shakedown.log"
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


def _checks(folder: Storage, spec: RunSpec, attempts: list[Ended], prefix: str) -> list[Check]:
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


def _run_twice(run: Run, place: str, launcher: Launcher, spec: RunSpec, devices: int) -> list[Ended]:
    """Both runs, one after the other; the second only where the first got to its end. Every attempt, in order."""
    folder = run.storage.child(place)
    whole, resumed = folder.child(WHOLE), folder.child(RESUMED)
    half = spec.config.steps // 2
    whole.write_json("config.json", spec.model_dump(mode="json"))
    attempts = _run(run, f"{place}/{WHOLE}", launcher, devices)
    if attempts[-1].code != 0 or not whole.exists(f"{CHECKPOINTS}/ckpt-step-{half}.pt"):
        return attempts
    # what a run that was killed half way leaves behind
    copy_object(whole, resumed, f"{CHECKPOINTS}/ckpt-step-{half}.pt")
    lines = whole.read_text("metrics.jsonl").splitlines(keepends=True)
    resumed.write_text("metrics.jsonl", "".join(line for line in lines if json.loads(line)["step"] <= half))
    resumed.write_json("config.json", spec.model_dump(mode="json"))
    return attempts + _run(run, f"{place}/{RESUMED}", launcher, devices)


def _run(run: Run, folder: str, launcher: Launcher, devices: int) -> list[Ended]:
    """Start a run until it ends by itself; a crash may be the machine's fault once."""
    attempts: list[Ended] = []
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
        if attempts[-1].code in (0, USER_ERROR):
            break
    return attempts


def _crash(ended: Ended) -> Check:
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
