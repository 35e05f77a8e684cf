"""What a plan warns of before anything is paid: rules in numbers, money that is short, proofs that can fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podium.components.study.cost import stage_cost, total
from podium.components.study.design import variants
from podium.components.study.promoted import Counted, go_on, pivots
from podium.components.study.schema import Price, Study
from podium.trainer.stop_checks import meaning_of
from podium.trainer.units import format_count, format_usd

if TYPE_CHECKING:
    from podium.components.study.plan import StagePlan


def warnings_of(study: Study, names: list[str], stages: list[StagePlan], usd: float | None) -> list[str]:
    """Sentences about the stages that are planned, in their order, then about the whole."""
    found = []
    limit = study.budget.usd
    for planned in stages:
        stage = study.stages[planned.name]
        if stage.stop.kill is not None:
            found += [f"{planned.name}: kill rule: {sentence}" for sentence in meaning_of(stage.stop.kill, None)]
        if stage.proof and planned.seeds < 2:
            found.append(f"{planned.name}: one seed never proves; its verdict will name a candidate")
        if planned.usd is None:
            found.append(f"{planned.name}: a price per hour without minutes_per_run, so its cost is unknown")
        if stage.resources.gpus_per_trial and stage.price == Price():
            found.append(f"{planned.name}: asks for GPUs and names no price, so it counts as $0")
        if planned.passes is not None and planned.passes >= 2:
            found.append(
                f"{planned.name}: {format_count(planned.tokens / max(planned.trials, 1))} tokens are about "
                f"{planned.passes:.0f} passes over the training text"
            )
        if not planned.affordable and planned.usd_so_far is not None and limit is not None:
            found.append(
                f"{planned.name} is not affordable: needs {format_usd(planned.usd_so_far)} with what comes before, "
                f"the budget is {format_usd(limit)}"
            )
    from podium.components.verdicts.declared_power import declared_powers  # scipy takes a while to load

    found += [
        each.warning for each in declared_powers(study, most_variants(study)) if each.stage in names and each.warning
    ]
    for name, cost in pivot_costs(study, names):
        needed = total([usd, cost])
        if limit is not None and needed is not None and needed > limit:
            found.append(
                f"{name}: a pivot is not affordable: needs {format_usd(needed)}, the budget is {format_usd(limit)}"
            )
    if limit is not None and usd is not None and usd > limit and all(stage.affordable for stage in stages):
        found.append(f"the evaluation is not affordable: needs {format_usd(usd)}, the budget is {format_usd(limit)}")
    return found


def pivot_costs(study: Study, names: list[str]) -> list[tuple[str, float | None]]:
    """Stages that may try variants besides, each with what these cost."""
    counted = [(name, pivots(study, name)) for name in names]
    return [(name, stage_cost(study, name, most).usd) for name, most in counted if most]


def most_variants(study: Study) -> dict[str, int]:
    """Stage → variants beside the baseline that may be compared there, at most, pivots included."""
    found = {}
    here = Counted(len(variants(study)), len(variants(study)), True)
    for name in study.stages:
        found[name] = max(1, here.most - int(here.has_baseline)) + pivots(study, name)
        here = go_on(study, name, here, axes=len(study.axes))
    return found
