"""The trials of a study: the config and dataset of each, who waits for whom, and what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from podium.components.study.design import Taken, baseline, configurations, of_values, variants, waves
from podium.components.study.fields import is_data_field, with_overrides
from podium.components.study.fingerprint import trial_fingerprint
from podium.components.study.layout import TrialKey, data_key
from podium.components.study.policy import ArmCount, policy_of
from podium.components.study.schema import Metric, Price, Study
from podium.components.study.verdict import AskedTrial, TrialOutcome, VariantRef
from podium.trainer.builtin.allocation import resolve_config
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.builtin.data.corpus import CorpusConfig
from podium.trainer.builtin.data.prepare import PrepareConfig
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.result import Status, TrialResult
from podium.trainer.trial.storage import join_uri

SEEDS_PER_STAGE = 10
"""Distance between two stages' first seeds, and so the most seeds that a number can ask for."""


def stage_seeds(study: Study, stage: str) -> list[int]:
    """The seeds of a stage: its list, or base_seed + 10 × stage index + i. Every variant runs the same ones."""
    declared = study.stages[stage].seeds
    if isinstance(declared, list):
        return list(declared)
    first = study.base_seed + SEEDS_PER_STAGE * list(study.stages).index(stage)
    return list(range(first, first + declared))


def variant_config(study: Study, stage: str, variant: VariantRef) -> TrainConfig:
    """What the trainer runs for a variant at a stage, but for the seed: the allocation is solved, nothing is open.

    The base config, under the stage's overrides, under the variant's own; the baseline has no kill rule, since it is
    what the rule compares with. Raises ConfigError naming the variant and the field.
    """
    declared = study.stages[stage]
    overrides = declared.overrides | {k: v for k, v in variant.overrides.items() if not is_data_field(k)}
    tree = with_overrides(study.config, overrides)
    vocab_size = _vocab_size(study, variant)
    model = tree.get("model")
    model = dict(model) if isinstance(model, Mapping) else {}
    if model.setdefault("vocab_size", vocab_size) != vocab_size:
        raise _misfit(stage, variant, [Problem("model.vocab_size", f"must be data.vocab_size = {vocab_size}, "
                                               f"got {model['vocab_size']!r}; leave it out")])  # fmt: skip
    stop = declared.stop.model_copy(update={"kill": None}) if variant.name == study.baseline.variant else declared.stop
    budget = {"max_tokens": declared.budget.tokens, "max_steps": declared.budget.steps}
    try:
        return resolve_config(TrainConfig.model_validate(tree | budget | {"model": model, "stop": stop}))
    except ValidationError as error:
        raise _misfit(stage, variant, ConfigError.from_validation(error).problems) from None
    except ConfigError as error:
        raise _misfit(stage, variant, error.problems) from None


def trial_config(study: Study, stage: str, variant: VariantRef, seed: int) -> TrainConfig:
    """What the trainer runs for one trial. Raises ConfigError naming the variant and the field."""
    return variant_config(study, stage, variant).model_copy(update={"seed": seed})


def gate_stages(study: Study) -> dict[str, str]:
    """What the gate must try before anything is paid: each mode of the baseline (dense, moe), and its first stage."""
    control = baseline(study)
    found: dict[str, str] = {}
    for stage in study.stages:
        found.setdefault(variant_config(study, stage, control).mode, stage)
    return found


def dataset_config(study: Study, variant: VariantRef) -> PrepareConfig:
    """The dataset that a variant is trained on. Raises ConfigError naming the variant and the field."""
    changed = {k.removeprefix("data."): v for k, v in variant.overrides.items() if is_data_field(k)}
    if not changed:
        return PrepareConfig(corpus=study.data.corpus, vocab_size=study.data.vocab_size, tokenizer=study.data.tokenizer)
    tree = with_overrides(study.data.model_dump(), changed)
    try:
        corpus = CorpusConfig.model_validate(tree["corpus"])
        return PrepareConfig(corpus=corpus, vocab_size=tree["vocab_size"], tokenizer=tree["tokenizer"])
    except ValidationError as error:
        prefixed = ConfigError.from_validation(error, prefix="data").problems
        raise ConfigError(Problem(f"variant {variant.name}: {p.where}", p.what) for p in prefixed) from None


def datasets(study: Study) -> dict[str, PrepareConfig]:
    """Every dataset that the study may train on: by variant, and for combinations that a verdict may make."""
    found = {variant.name: dataset_config(study, variant) for variant in variants(study)}
    data_axes = {name: axis for name, axis in study.axes.items() if is_data_field(axis.field)}
    if len(data_axes) > 1:
        base = baseline(study)
        for values in itertools.product(*(axis.values for axis in data_axes.values())):
            overrides = base.overrides | {a.field: v for a, v in zip(data_axes.values(), values, strict=True)}
            name = "-".join(str(value) for value in values)
            found[f"combination {name}"] = dataset_config(study, VariantRef(name=name, overrides=overrides))
    return found


def _vocab_size(study: Study, variant: VariantRef) -> int:
    value: Any = variant.overrides.get("data.vocab_size", study.data.vocab_size)
    assert isinstance(value, int)
    return value


def _misfit(stage: str, variant: VariantRef, problems: Any) -> ConfigError:
    """The trainer's problems, placed at the config's field and naming whose it is."""
    return ConfigError(
        Problem(f"config.{p.where}".rstrip("."), f"{p.what} (variant {variant.name}, stage {stage})") for p in problems
    )


# The trials of a stage: each with its config, its identity, its data and what its kill rule compares with.


@dataclass(frozen=True)
class Trial:
    """One training run of a stage, as it is to be started."""

    key: TrialKey
    variant: VariantRef
    seed: int
    config: TrainConfig
    fingerprint: str
    dataset_uri: str
    references: tuple[TrialKey, ...] = ()
    """The baseline's trials that its kill rule compares with; empty for the baseline and without such a rule."""
    group: str | None = None
    """The group of the study whose row it is."""
    continues: Trial | None = None
    """The trial from whose last checkpoint it goes on."""


def stage_trials(
    study: Study,
    stage: str,
    refs: list[VariantRef],
    *,
    seeds: list[int] | None,
    data: Mapping[str, str],
    run_id: str,
    store_uri: str,
) -> Iterator[Trial]:
    """The trials of these variants, seed by seed, the baseline first; the stage's own seeds where none are given.

    A variant with repeats has further seeds, which follow the last one. `data` is the fingerprint of each variant's
    dataset. A baseline with a recorded figure for the stage is not run.
    Raises ConfigError naming the variant and the field.
    """
    declared, control = study.stages[stage], study.baseline.variant
    if stage in study.baseline.recorded:
        refs = [ref for ref in refs if ref.name != control]
    refs = sorted(refs, key=lambda ref: ref.name != control)
    configs = {ref.name: variant_config(study, stage, ref) for ref in refs}
    uris = {ref.name: join_uri(store_uri, data_key(data[ref.name])) for ref in refs}
    own_run = run_id if declared.proof else None
    references: tuple[TrialKey, ...] = ()
    reference_prints: list[str] = []
    if declared.stop.kill is not None and control in configs:
        for seed in stage_seeds(study, stage):
            references += (TrialKey(stage, control, seed),)
            config = configs[control].model_copy(update={"seed": seed})
            reference_prints.append(trial_fingerprint(config, data[control], run_id=own_run))
    first = list(seeds or stage_seeds(study, stage))
    further = range(max(first) + 1, max(first) + 1 + len(first) * (max((ref.repeats for ref in refs), default=1) - 1))
    for index, seed in enumerate([*first, *further]):
        for ref in refs:
            if index >= len(first) * ref.repeats:
                continue
            config = configs[ref.name].model_copy(update={"seed": seed})
            killable = ref.name != control
            fingerprint = trial_fingerprint(
                config, data[ref.name], run_id=own_run, references=reference_prints if killable else ()
            )
            yield Trial(
                key=TrialKey(stage, ref.name, seed),
                variant=ref,
                seed=seed,
                config=config,
                fingerprint=fingerprint,
                dataset_uri=uris[ref.name],
                references=references if killable else (),
            )


def single_trials(
    study: Study,
    stage: str,
    asked: Iterable[AskedTrial],
    *,
    data: Mapping[str, str],
    run_id: str,
    store_uri: str,
) -> Iterator[Trial]:
    """The trials that are named one by one. One of a fallback goes on from the trial that has its variant and seed.

    Raises ConfigError naming the variant and the field.
    """
    place = {"data": data, "run_id": run_id, "store_uri": store_uri}
    for each in asked:
        ref = each.variant.model_copy(update={"repeats": 1})
        (made,) = stage_trials(study, stage, [ref], seeds=[each.seed], **place)  # type: ignore[arg-type]
        made = replace(made, group=each.group)
        if each.target is None and each.fallback is None:
            yield made
            continue
        config = made.config if each.target is None else with_target(made.config, each.target)
        continues = made if each.fallback is not None else None
        # where it starts decides its result too
        before = [] if continues is None else [continues.fingerprint]
        own_run = run_id if study.stages[stage].proof else None
        yield replace(
            made,
            key=TrialKey(stage, ref.name, each.seed, each.fallback),
            config=config,
            fingerprint=trial_fingerprint(config, data[ref.name], run_id=own_run, references=before),
            continues=continues,
        )


def with_target(config: TrainConfig, loss: float) -> TrainConfig:
    """The same run to another target; the one that it had is still timed."""
    rule = config.stop.target
    assert rule is not None, "only a run to a target has another one"
    also = [each for each in rule.losses if each != loss]
    stop = config.stop.model_copy(update={"target": rule.model_copy(update={"loss": loss, "also": also})})
    return config.model_copy(update={"stop": stop})


# The trials of a wave: every row of its groups, a configuration that comes again with its next seed.


def wave_trials(study: Study, stage: str, number: int, taken: Taken, before: Iterable[AskedTrial]) -> list[AskedTrial]:
    """The trials of wave `number` (from 0), in the order of groups and rows; `before` are those of the waves before."""
    base = baseline(study)
    used: dict[str, set[int]] = {}
    for asked in before:
        used.setdefault(asked.variant.name, set()).add(asked.seed)
    groups = study.stages[stage].groups
    found = []
    for name in waves(groups)[number]:
        for values in configurations(groups[name], base.axis_values, taken):
            ref = of_values(study, base, values)
            seed = next_seed(study, stage, used.setdefault(ref.name, set()))
            used[ref.name].add(seed)
            found.append(AskedTrial(variant=ref, seed=seed, group=name))
    return found


def next_seed(study: Study, stage: str, used: set[int]) -> int:
    """The stage's first seed, or the one after the last that is used."""
    return max(used) + 1 if used else stage_seeds(study, stage)[0]


# From a trial's result to what a verdict needs of it.

RANKED = (Status.COMPLETED, Status.TARGET_REACHED, Status.MISSED_TARGET)
"""Ends with a figure at the declared last step or target. A run that ended otherwise has none that compares."""


def outcome_of(
    variant: str,
    result: TrialResult,
    metric: Metric,
    tokenizer: str | None,
    reused_from: str | None = None,
    fallback: str | None = None,
) -> TrialOutcome:
    """A result as a verdict reads it. The value is None where the run did not end as planned, or it is not finite."""
    value = getattr(result, metric) if result.status in RANKED else None
    return TrialOutcome(
        variant=variant,
        seed=result.seed,
        fingerprint=result.fingerprint or "",
        status=result.status,
        value=value if value is not None and math.isfinite(value) else None,
        final_val_loss=finite(result.final_val_loss),
        tokens=result.tokens,
        device=result.versions.device if result.versions else None,
        tokenizer=tokenizer,
        cost_usd=result.cost_usd,
        time_to_target_seconds=finite(result.time_to_target_seconds),
        training_seconds=finite(result.training_seconds),
        steps=result.steps,
        targets={f"{crossing.loss:g}": finite(crossing.seconds) for crossing in result.targets},
        fallback=fallback,
        reused_from=reused_from,
    )


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


# What a study costs: expected device-hours and dollars of a stage, from the prices it declares.


@dataclass(frozen=True)
class Cost:
    """Trials, device-hours and dollars. None where the study declares nothing to compute it from."""

    trials: int
    gpu_hours: float | None
    """Hours × GPUs; 0 for trials on a CPU."""
    usd: float | None
    hours: float | None
    """Wall-clock hours with the stage's trials in parallel."""


def run_usd(price: Price, devices: int) -> float | None:
    """Expected dollars of one run on this many devices; 0 where the study names no price at all."""
    if price.usd_per_run is not None:
        return price.usd_per_run
    if price.usd_per_gpu_hour is None:
        return 0.0
    if price.minutes_per_run is None:
        return None
    return price.usd_per_gpu_hour * devices * price.minutes_per_run / 60


def usd_of_seconds(price: Price, device_seconds: float) -> float | None:
    """Dollars of device-seconds held. A price per run is charged by `run_usd`, whatever the time."""
    if price.usd_per_run is not None:
        return None
    return (price.usd_per_gpu_hour or 0.0) * device_seconds / 3600


def stage_cost(study: Study, stage: str, arms: int, *, parallel: int | None = None) -> Cost:
    """Expected cost of a stage with this many variants, each with the stage's seeds, so many trials at once."""
    declared = study.stages[stage]
    trials = arms * len(stage_seeds(study, stage))
    gpus = declared.resources.gpus_per_trial
    each = run_usd(declared.price, max(gpus, 1))
    minutes = declared.price.minutes_per_run
    rounds = -(-trials // (parallel or declared.resources.parallel))
    return Cost(
        trials=trials,
        gpu_hours=0.0 if gpus == 0 else None if minutes is None else trials * gpus * minutes / 60,
        usd=None if each is None else round(trials * each, 6),
        hours=None if minutes is None else rounds * minutes / 60,
    )


def total(values: Iterable[float | None]) -> float | None:
    """The sum, None if a part is unknown: a missing figure is never a zero."""
    parts = list(values)
    known = [value for value in parts if value is not None]
    return round(math.fsum(known), 6) if len(known) == len(parts) else None


# What the way to the end costs with the variants that a policy promotes.
#
# What may be promoted is capped by money: a second variant is worth nothing if the stages after can then not be paid.


def payable(study: Study, stage: str, spent: float, most: int, *, baseline: bool) -> int:
    """How many variants the stage can be paid for, up to `most`, so that the stages after it can be paid too."""
    limit = study.budget.usd
    for arms in range(most, 0, -1):
        needed = total([spent, usd_to_end(study, stage, arms + int(baseline))])
        if limit is None or needed is None or needed <= limit + 1e-9:
            return arms
    return 0


def usd_to_end(study: Study, stage: str, arms: int) -> float | None:
    """Dollars of a stage with this many arms, and of what comes after with the fewest; None where one is unknown."""
    stages = list(study.stages)
    parts: list[float | None] = []
    here = ArmCount(arms, arms, False)
    for name in stages[stages.index(stage) :]:
        recorded = int(here.has_baseline and name in study.baseline.recorded)
        parts.append(stage_cost(study, name, here.fewest - recorded).usd)
        here = policy_of(study, name).next_arms(study, name, here)
    gpus = study.stages[stages[-1]].resources.gpus_per_trial
    parts.append(run_usd(study.evaluation.price, max(gpus, 1)))
    return total(parts)
