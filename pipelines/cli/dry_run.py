"""`podium run --dry-run`: every command and resource of a run, and nothing written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from podium.pipelines.cli.console import result, result_json, say
from podium.trainer.units import format_count, format_usd

if TYPE_CHECKING:
    from podium.components.study.plan import Plan
    from podium.components.study.schema import Study
    from podium.components.study.selection import Selection
    from podium.components.verdicts.verdict import VariantRef
    from podium.trainer.config import TrainConfig


def show(study: Study, planned: Plan, chosen: Selection, store: str, *, as_json: bool) -> None:
    """Print the commands of the trials that are known, and what the stages after will take."""
    record = describe(study, planned, chosen, store)
    if as_json:
        result_json(record)
        return
    for line in _lines(record):
        result(line)
    say("nothing was run or written")


def _lines(record: dict[str, Any]) -> Iterator[str]:
    yield f"run {record['run_id']} in {record['store']}"
    for place in record["datasets"]:
        yield f"data {place}"
    for stage in record["stages"]:
        request = f"{stage['gpus']} GPUs" if stage["gpus"] else "the CPU"
        trials = f"{stage['trials']} trials, {stage['parallel']} at once on {request}"
        yield f"{stage['name']}: {trials}, {_usd(stage['usd'])}"
        for trial in stage["commands"]:
            yield f"  {trial['trial']}: {trial['config']}; {trial['device']}; {_usd(trial['usd'])}"
            yield f"    {shlex.join(trial['argv'])}"
        yield from (f"  {line}" for line in stage["waiting"])
        if not stage["commands"]:
            yield "  its trials are named by the verdict before"


def describe(study: Study, planned: Plan, chosen: Selection, store: str) -> dict[str, Any]:
    """The run as data: identity, datasets, and a command for each trial that is known before any verdict."""
    from podium.components.prepare_data.gpus import stage_gpus
    from podium.components.study import layout
    from podium.components.study.design import baseline, variants
    from podium.components.study.fingerprint import run_id
    from podium.components.study.groups import grouped_stage
    from podium.components.study.selection import is_selected
    from podium.components.study.trials import datasets, stage_seeds
    from podium.components.study.waves import wave_trials
    from podium.trainer.data.prepare import data_fingerprint
    from podium.trainer.storage import join_uri, normalise_uri

    uri = normalise_uri(store)
    fingerprints = sorted({data_fingerprint(config) for config in datasets(study).values()})
    identity = run_id(study, fingerprints)
    first = next(iter(study.stages))
    stages = []
    for expected in planned.to_json()["stages"]:
        declared = study.stages[expected["name"]]
        commands: list[dict[str, Any]] = []
        waiting: list[str] = []
        if expected["name"] == first:
            base = baseline(study)
            known = [(ref, seed) for seed in stage_seeds(study, first) for ref in variants(study)]
            if first == grouped_stage(study):
                known = [(asked.variant, asked.seed) for asked in wave_trials(study, first, 0, {}, [])]
                waiting = _waiting(study, first)
            run_uri = join_uri(uri, layout.run_key(identity))
            commands = [
                _command(study, first, ref, seed, run_uri)
                for ref, seed in known
                if is_selected(study, ref, chosen, base)
            ]
        stages.append(
            {
                **expected,
                "parallel": chosen.parallel or declared.resources.parallel,
                "gpus": stage_gpus(declared.resources, chosen.launcher, chosen.parallel),
                "gpu_class": declared.resources.gpu_class,
                "commands": commands,
                "waiting": waiting,
            }
        )
    return {
        "run_id": identity,
        "store": uri,
        "datasets": [join_uri(uri, layout.data_key(fingerprint)) for fingerprint in fingerprints],
        "stages": stages,
    }


def _waiting(study: Study, stage: str) -> list[str]:
    """The rows of later waves, what they take from others named and not yet known."""
    from podium.components.study.groups import waves

    groups = study.stages[stage].groups
    lines = []
    for names in waves(groups)[1:]:
        for name in names:
            taken = ", ".join(f"{axis} of {source}'s best" for axis, source in groups[name].takes.items())
            for row in groups[name].rows:
                said = ", ".join(f"{axis} {value}" for axis, value in row.items())
                lines.append(
                    f"group {name}, after {', '.join(sorted(groups[name].waits_for))}: {said}; {taken}".rstrip("; ")
                )
    return lines


def _command(study: Study, stage: str, variant: VariantRef, seed: int, run_uri: str) -> dict[str, Any]:
    from podium.components.launch.launcher import trial_command
    from podium.components.study.cost import run_usd
    from podium.components.study.layout import TrialKey
    from podium.components.study.trials import trial_config
    from podium.trainer.storage import join_uri

    key = TrialKey(stage, variant.name, seed)
    gpus = study.stages[stage].resources.gpus_per_trial
    return {
        "trial": key.name,
        "argv": trial_command(join_uri(run_uri, key.folder)),
        "config": _summary(trial_config(study, stage, variant, seed)),
        "overrides": variant.overrides,
        "device": f"{gpus} × {study.stages[stage].resources.gpu_class or 'GPU'}" if gpus else "CPU",
        "usd": run_usd(study.stages[stage].price, max(gpus, 1)),
    }


def _summary(config: TrainConfig) -> str:
    d_model, n_layers, n_heads, d_ff = config.model.dimensions
    shape = f"{n_layers} layers, d_model {d_model}, {n_heads} heads, d_ff {d_ff}"
    return (
        f"{shape}, {format_count(config.tokens)} tokens in {config.steps} steps, lr {config.optimizer.learning_rate:g}"
    )


def _usd(value: float | None) -> str:
    return "no price declared" if value is None else format_usd(value)
