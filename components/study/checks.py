"""What the schema can't see: contradictions between the parts of a study."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from podium.components.study.design import baseline, experiments, group_problems, variants
from podium.components.study.fingerprint import canonical_hash
from podium.components.study.policy import policy_of
from podium.components.study.schema import NAME, Study
from podium.components.study.trials import dataset_config, stage_cost, stage_seeds, variant_config
from podium.components.study.verdict import VariantRef
from podium.trainer.builtin.checks import impossible_rules
from podium.trainer.builtin.config import TrainConfig
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.section import format_usd

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
    of_policies = (problem for name in study.stages for problem in policy_of(study, name).problems(study, name))
    return [*_configs(study), *_budget(study), *of_policies]


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
    for name in study.stages:
        yield from policy_of(study, name).design_problems(study, name)
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
    if metric != "final_bits_per_byte" and not policy_of(study, stage).takes_any_tokenizer:
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
