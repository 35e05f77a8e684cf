"""The trials of a stage: each with its config, its identity, its data and what its kill rule compares with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from podium.components.study.fingerprint import trial_fingerprint
from podium.components.study.layout import TrialKey, data_key
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds, variant_config
from podium.components.verdicts.verdict import AskedTrial, VariantRef
from podium.trainer.config import TrainConfig
from podium.trainer.storage import join_uri


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
