"""The trials of a wave: every row of its groups, a configuration that comes again with its next seed."""

from __future__ import annotations

from collections.abc import Iterable

from podium.components.study.design import baseline, of_values
from podium.components.study.groups import Taken, configurations, waves
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds
from podium.components.verdicts.verdict import AskedTrial


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
