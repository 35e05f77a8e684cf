"""What the schema can't see: contradictions between the parts of a study."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from podium.components.policies.schema import (
    TIME,
    BeatsBaseline,
    Fallbacks,
    FastestToTarget,
    ReachesTarget,
    RefineRegion,
)
from podium.components.study.cost import stage_cost
from podium.components.study.design import baseline, experiments, group_problems, variants
from podium.components.study.fields import no_such_field, study_fields
from podium.components.study.fingerprint import canonical_hash
from podium.components.study.schema import NAME, Stage, Study
from podium.components.study.trials import dataset_config, stage_seeds, variant_config
from podium.components.verdicts.verdict import VariantRef
from podium.trainer.builtin.checks import impossible_rules
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.units import format_usd

# What a promotion policy asks of the study around it.


def policy_problems(study: Study) -> Iterator[Problem]:
    """Policies that can't work where they stand, each with its place."""
    stages = list(study.stages)
    for index, (name, stage) in enumerate(study.stages.items()):
        policy, where = stage.promotion, f"stages.{name}.promotion"
        if isinstance(policy, FastestToTarget) and policy.metric != TIME:
            yield Problem(f"{where}.metric", f"must be {TIME!r} for fastest_to_target, got {policy.metric!r}")
        if isinstance(policy, BeatsBaseline | ReachesTarget) and policy.pivot is not None and index == 0:
            yield Problem(f"{where}.pivot", "takes the next best of the stage before, and this is the first stage")
        if isinstance(policy, BeatsBaseline) and policy.paired and name in study.baseline.recorded:
            yield Problem(
                f"{where}.paired", "needs the baseline's own seeds, and its figure here was recorded elsewhere"
            )
        if policy.metric == TIME:
            yield from _time_problems(name, stage)
        if isinstance(policy, FastestToTarget | RefineRegion):
            yield from _fallback_problems(name, stage, policy)
        if isinstance(policy, RefineRegion):
            if name == stages[-1]:
                yield Problem(f"{where}.policy", "refine_region makes the next stage's variants, and this is the last")
            fields = [("fields", policy.fields), ("log", policy.log), ("bounds", list(policy.bounds))]
            for part, named in [*fields, ("multiple_of", list(policy.multiple_of))]:
                for field in named:
                    if field not in study_fields():
                        yield Problem(f"{where}.{part}", no_such_field(field))


def _time_problems(name: str, stage: Stage) -> Iterator[Problem]:
    """A time says something only where a trial has its device to itself, and stops at its target."""
    if stage.stop.target is None:
        yield Problem(f"stages.{name}.stop.target", f"must be given: the stage ranks by {TIME}")
    resources = stage.resources
    if not resources.gpus_per_trial and resources.parallel > 1 and not resources.share_cpu:
        yield Problem(
            f"stages.{name}.resources.parallel",
            f"must be 1: the stage ranks times, and trials would share the CPU (resources.share_cpu: true says that "
            f"they may), got {resources.parallel}",
        )


def _fallback_problems(name: str, stage: Stage, policy: FastestToTarget | RefineRegion) -> Iterator[Problem]:
    where, fallbacks, rule = f"stages.{name}.promotion.fallbacks", policy.fallbacks, stage.stop.target
    if fallbacks != Fallbacks() and policy.metric != TIME:
        yield Problem(where, f"are for a stage that ranks by {TIME}, got metric {policy.metric!r}")
    elif rule is not None:
        looser = [loss for loss in rule.losses if loss > rule.loss]
        if fallbacks.relax is not None and fallbacks.relax not in looser:
            timed = ", ".join(f"{loss:g}" for loss in looser) or "none"
            yield Problem(
                f"{where}.relax",
                f"must be a looser loss that stop.target.also times ({timed}), got {fallbacks.relax:g}",
            )
        if fallbacks.tighten is not None and fallbacks.tighten.target >= rule.loss:
            got = fallbacks.tighten.target
            yield Problem(f"{where}.tighten.target", f"must be under the target {rule.loss:g}, got {got:g}")


LONGEST_NAME = 60
NAME_RULE = "must be lower-case letters, digits, '.', '_' or '-', first a letter or digit, since it becomes a folder"


def check_study(study: Study) -> list[Problem]:
    """Every contradiction in a study whose fields and values are all valid by themselves."""
    problems = [*group_problems(study, baseline(study).axis_values)]
    if problems:
        return problems  # without sound groups there are no variants to look at
    problems = [*_names(study), *_design(study), *_seeds(study), *_baseline(study)]
    if problems:
        return problems  # the rest would stumble over the same things
    return [*_configs(study), *_budget(study), *policy_problems(study)]


def _names(study: Study) -> Iterator[Problem]:
    named = [
        *((f"stages.{name}", name) for name in study.stages),
        *((f"axes.{name}", name) for name in study.axes),
        *((f"variants.{name}", name) for name in study.variants),
        *((f"axes.{axis}.names.{i}", n) for axis, a in study.axes.items() for i, n in enumerate(a.names or [])),
        ("baseline.variant", study.baseline.variant),
    ]
    champion = study.champion.stage
    if champion is not None and champion not in study.stages:
        yield Problem("champion.stage", f"must be a stage ({', '.join(study.stages)}), got {champion!r}")
    for where, name in named:
        if not re.match(NAME, name) or len(name) > LONGEST_NAME:
            yield Problem(where, f"{NAME_RULE}, at most {LONGEST_NAME}, got {name!r}")


def _design(study: Study) -> Iterator[Problem]:
    if study.design == "list" and study.axes:
        yield Problem("design", "must be 'one_at_a_time', 'grid' or 'groups' to use the axes, got 'list'")
    if study.design != "list" and not study.axes:
        yield Problem("design", f"must be 'list' where there are no axes, got {study.design!r}")
    for index, (name, stage) in enumerate(study.stages.items()):
        if stage.promotion.policy != "top_per_axis":
            continue
        where = f"stages.{name}.promotion.policy"
        if not study.axes or study.design != "one_at_a_time":
            yield Problem(where, "top_per_axis needs axes and design: one_at_a_time")
        elif index:
            yield Problem(where, "top_per_axis ranks the design's variants, so it can only be the first stage's")
    for name, axis in study.axes.items():
        doubled = [value for index, value in enumerate(axis.values) if value in axis.values[:index]]
        if doubled:
            yield Problem(f"axes.{name}.values", f"must be different, got {doubled[0]!r} twice")
    if study.axes and not any(row.variant == study.baseline.variant for row in experiments(study)):
        return
    counts = Counter(variant.name for variant in variants(study))
    for name, count in counts.items():
        if count > 1:
            yield Problem("variants", f"{count} variants have the name {name!r}; give the axis names of its own")


def _seeds(study: Study) -> Iterator[Problem]:
    seen: dict[int, str] = {}
    for name, stage in study.stages.items():
        seeds = stage_seeds(study, name)
        reused = sorted(seed for seed in seeds if seed in seen)
        if stage.proof and reused:
            stages = ", ".join(sorted({seen[seed] for seed in reused}))
            yield Problem(
                f"stages.{name}.seeds",
                f"a proof needs fresh seeds, got {', '.join(map(str, reused))}, which chose the candidates in {stages}",
            )
        if any(seed < 0 for seed in seeds):
            yield Problem(f"stages.{name}.seeds", f"must be 0 or more, got {min(seeds)}")
        if stage.min_seeds > len(seeds):
            yield Problem(f"stages.{name}.min_seeds", f"must be at most the {len(seeds)} seeds, got {stage.min_seeds}")
        seen |= dict.fromkeys(seeds, name)


def _baseline(study: Study) -> Iterator[Problem]:
    for name in study.baseline.recorded:
        if name not in study.stages:
            yield Problem(f"baseline.recorded.{name}", f"must be a stage ({', '.join(study.stages)}), got {name!r}")


def _configs(study: Study) -> Iterator[Problem]:
    refs = variants(study)
    try:
        prepared = {ref.name: dataset_config(study, ref) for ref in refs}
    except ConfigError as error:
        yield from error.problems
        return
    tokenizers = len({repr(config) for config in prepared.values()})
    failed: set[str] = set()
    for index, stage in enumerate(study.stages):
        if tokenizers > 1:
            yield from _incomparable(study, stage)
        configs: list[tuple[VariantRef, TrainConfig]] = []
        for ref in refs:
            try:
                configs.append((ref, variant_config(study, stage, ref)))
            except ConfigError as error:
                if ref.name not in failed:
                    yield from error.problems
                failed.add(ref.name)
                if ref.name == study.baseline.variant:
                    break  # the base config itself: every other variant would say the same
        yield from _impossible(study, stage, configs)
        yield from _unbalanced(study, stage, configs)
        if index == 0:
            yield from _identical([(ref, config, repr(prepared[ref.name])) for ref, config in configs])


def _unbalanced(study: Study, stage: str, configs: list[tuple[VariantRef, TrainConfig]]) -> Iterator[Problem]:
    if study.data.corpus.domains is None and any(config.data.balance_tokens for _, config in configs):
        source = study.data.corpus.source
        yield Problem(
            "config.data.balance_tokens", f"needs a corpus of several domains (mixture), got {source!r} (stage {stage})"
        )


def _incomparable(study: Study, stage: str) -> Iterator[Problem]:
    declared = study.stages[stage]
    metric = declared.promotion.metric
    if metric != "final_bits_per_byte" and declared.promotion.policy != "always":
        yield Problem(
            f"stages.{stage}.promotion.metric",
            f"must be 'final_bits_per_byte': the variants have different tokenizers or texts, so losses and "
            f"perplexities a token can't be compared, got {metric!r}",
        )
    if declared.stop.kill and any(c.metric in ("perplexity", "loss") for c in declared.stop.kill.criteria):
        yield Problem(
            f"stages.{stage}.stop.kill",
            "compares losses a token with the baseline's, which has another tokenizer or text than some variants; "
            "leave it out (null)",
        )


def _identical(configs: list[tuple[VariantRef, TrainConfig, str]]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for ref, config, data in configs:
        # the kill rule, which only the baseline lacks, makes no difference between two variants
        stop = config.stop.model_copy(update={"kill": None})
        key = canonical_hash([config.model_copy(update={"stop": stop}), data])
        if key in seen:
            yield Problem(f"variants.{ref.name}", f"is the same training as {seen[key]!r}: it changes nothing")
        seen.setdefault(key, ref.name)


def _impossible(study: Study, stage: str, configs: list[tuple[VariantRef, TrainConfig]]) -> Iterator[Problem]:
    """Rules and intervals that can never occur, each once: variants alike in what decides that are judged together."""
    alike: dict[str, list[tuple[VariantRef, TrainConfig]]] = {}
    for ref, config in configs:
        key = repr((config.steps, config.tokens_per_step, config.evaluation, config.checkpoint, config.stop))
        alike.setdefault(key, []).append((ref, config))
    told: set[tuple[str, str]] = set()
    for group in alike.values():
        ref, config = group[0]
        whose = f"stage {stage}" if len(group) > 1 or len(configs) < 3 else f"variant {ref.name}, stage {stage}"
        for problem in impossible_rules(config):
            if (problem.where, problem.what) not in told:
                told.add((problem.where, problem.what))
                part = f"stages.{stage}." if problem.where.startswith("stop") else "config."
                yield Problem(f"{part}{problem.where}", f"{problem.what} ({whose})")


def _budget(study: Study) -> Iterator[Problem]:
    limit = study.budget.usd
    first = next(iter(study.stages))
    usd = stage_cost(study, first, len(variants(study))).usd
    if limit is not None and usd is not None and usd > limit:
        yield Problem("budget.usd", f"the first stage, {first}, costs {format_usd(usd)} alone, got {format_usd(limit)}")
