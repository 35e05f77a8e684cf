"""What a study takes, said before anything runs: trials, tokens, hours, dollars, GPUs, and what its rules mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from podium.components.study.design import (
    Selection,
    assumptions,
    baseline,
    check_selection,
    configurations,
    grouped_stage,
    is_selected,
    of_values,
    variants,
)
from podium.components.study.policy import ArmCount, policy_of
from podium.components.study.schema import Price, Study
from podium.components.study.trials import (
    Cost,
    dataset_config,
    gate_stages,
    run_usd,
    stage_cost,
    stage_seeds,
    total,
    variant_config,
)
from podium.components.study.verdict import VariantRef
from podium.trainer.builtin.checks import meaning_of
from podium.trainer.trial.section import format_count, format_usd

# What a plan warns of before anything is paid: rules in numbers, money that is short, proofs that can fail.


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
    arms = most_variants(study)
    proofs = [name for name, stage in study.stages.items() if stage.proof and name in names]
    found += filter(None, (policy_of(study, name).power_warning(study, name, arms[name]) for name in proofs))
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
    counted = [(name, policy_of(study, name).most_pivots) for name in names]
    return [(name, stage_cost(study, name, most).usd) for name, most in counted if most]


def most_variants(study: Study) -> dict[str, int]:
    """Stage → variants beside the baseline that may be compared there, at most, pivots included."""
    found = {}
    here = ArmCount(len(variants(study)), len(variants(study)), True)
    for name in study.stages:
        policy = policy_of(study, name)
        found[name] = max(1, here.most - int(here.has_baseline)) + policy.most_pivots
        here = policy.next_arms(study, name, here, axes=len(study.axes))
    return found


@dataclass(frozen=True)
class StagePlan:
    """A stage as expected. What its declaration does not tell is None."""

    name: str
    arms: int
    seeds: int
    trials: int
    trials_range: tuple[int, int] | None
    """Fewest and most trials, where the verdict before decides."""
    tokens: int
    passes: float | None
    """Passes of one trial over the training text."""
    gpus: int
    """GPUs at once; 0 is the CPU."""
    gpu_class: str | None
    parallel: int
    hours: float | None
    gpu_hours: float | None
    usd: float | None
    usd_so_far: float | None
    """With shakedown and the stages before."""
    affordable: bool


@dataclass(frozen=True)
class Plan:
    """What the whole study takes if nothing is stopped early: the most that its verdicts can let through."""

    study: str
    profile: str
    trials: int
    tokens: int
    hours: float | None
    gpu_hours: float | None
    usd: float | None
    usd_worst: float | None
    usd_naive: float | None
    """Every variant at the last stage's budget and seeds, each evaluated, after the same shakedown. None where nothing
    is ranked: then there is no dearer way to the same answer."""
    saving: float | None
    """1 - usd / usd_naive."""
    budget_usd: float | None
    affordable: bool
    stages: list[StagePlan]
    shakedown: Cost
    evaluation: Cost
    branches: list[dict[str, Any]] = field(default_factory=list)
    """What each way of ending costs: a stop after a stage, the fewest finalists, the whole study."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """What each stage asks of the machine or the cluster."""
    warnings: list[str] = field(default_factory=list)
    ranks: bool = True
    """Whether any stage's policy chooses between variants."""

    def to_json(self) -> dict[str, Any]:
        """One plain object."""
        return asdict(self)


def plan(study: Study, *, selection: Selection | None = None) -> Plan:
    """The plan of a study, or of the part of it that is selected. Reads and writes nothing.

    Later stages are counted at the most that the verdict before can promote, with every trial run to its end.
    Raises UserError for a selection that the study does not have.
    """
    selection = selection or Selection()
    check_selection(study, selection)
    names = [name for name in study.stages if selection.stages is None or name in selection.stages]
    shakedown = _side_cost(study, study.shakedown.price, next(iter(study.stages)), len(gate_stages(study)))
    counts = _arms(study, selection)
    stages: list[StagePlan] = []
    so_far = shakedown.usd
    for name in names:
        stages.append(_stage_plan(study, name, counts[name], selection, so_far))
        so_far = stages[-1].usd_so_far
    last = list(study.stages)[-1]
    evaluated = policy_of(study, last).evaluated_arms(counts[last].likely) if names[-1] == last else 0
    evaluation = _side_cost(study, study.evaluation.price, names[-1], evaluated)
    usd = total([shakedown.usd, *(stage.usd for stage in stages), evaluation.usd])
    everyone = len({ref.name for ref in _rows(study, Selection())})
    naive_evaluation = _side_cost(study, study.evaluation.price, last, everyone)
    ranks = any(policy_of(study, name).ranks for name in study.stages)
    naive = total([shakedown.usd, stage_cost(study, last, everyone).usd, naive_evaluation.usd]) if ranks else None
    limit = study.budget.usd
    return Plan(
        study=study.name,
        profile=study.profile,
        trials=sum(stage.trials for stage in stages),
        tokens=sum(stage.tokens for stage in stages),
        hours=total([shakedown.hours, *(stage.hours for stage in stages), evaluation.hours]),
        gpu_hours=total([shakedown.gpu_hours, *(stage.gpu_hours for stage in stages), evaluation.gpu_hours]),
        usd=usd,
        usd_worst=total([usd, *(cost for _, cost in pivot_costs(study, names)), *_surplus(study, stages)]),
        ranks=ranks,
        usd_naive=naive,
        saving=1 - usd / naive if usd is not None and naive else None,
        budget_usd=limit,
        affordable=limit is None or usd is None or usd <= limit,
        stages=stages,
        shakedown=shakedown,
        evaluation=evaluation,
        branches=_branches(study, stages, shakedown, evaluation, usd),
        requests=[_request(study, name, selection) for name in names],
        warnings=warnings_of(study, names, stages, usd),
    )


def _rows(study: Study, selection: Selection) -> list[VariantRef]:
    """The first stage's variants, one as often as it is a row of the stage's groups, as if every taken value were the
    first that is possible."""
    base = baseline(study)
    grouped = grouped_stage(study)
    refs = variants(study)
    if grouped is not None:
        taken = next(assumptions(study))
        groups = study.stages[grouped].groups.values()
        refs = [of_values(study, base, v) for group in groups for v in configurations(group, base.axis_values, taken)]
    return [ref for ref in refs if is_selected(study, ref, selection, base)]


def _arms(study: Study, selection: Selection) -> dict[str, ArmCount]:
    """Stage → the variants that are trained; a baseline with a recorded figure is not. Groups count their rows."""
    fewest = most = len(_rows(study, selection))
    counts: dict[str, ArmCount] = {}
    here = ArmCount(fewest, most, True)
    axes = 1 if selection.axis is not None else len(study.axes)
    spent = _side_cost(study, study.shakedown.price, next(iter(study.stages)), len(gate_stages(study))).usd
    for name in study.stages:
        recorded = int(here.has_baseline and name in study.baseline.recorded)
        counts[name] = replace(here, fewest=max(0, here.fewest - recorded), most=max(0, here.most - recorded))
        spent = total([spent, stage_cost(study, name, counts[name].likely).usd])
        here = policy_of(study, name).next_arms(study, name, here, axes=axes, spent=spent)
    return counts


def _stage_plan(study: Study, name: str, arms: ArmCount, selection: Selection, usd_before: float | None) -> StagePlan:
    stage = study.stages[name]
    seeds = len(stage_seeds(study, name))
    fewest, most = arms.fewest, arms.most
    parallel = selection.parallel or stage.resources.parallel
    cost = stage_cost(study, name, arms.likely, parallel=parallel)
    distinct = {ref.name for ref in _rows(study, selection)} if name == grouped_stage(study) else None
    base = baseline(study)
    tokens = variant_config(study, name, base).tokens
    corpus = dataset_config(study, base).corpus
    known = corpus.kind.tokens(corpus)
    so_far = total([usd_before, cost.usd])
    limit = study.budget.usd
    return StagePlan(
        name=name,
        arms=arms.likely if distinct is None else len(distinct),
        seeds=seeds,
        trials=cost.trials,
        trials_range=(fewest * seeds, most * seeds) if fewest != most else None,
        tokens=tokens * cost.trials,
        passes=round(tokens / known, 2) if known else None,
        gpus=stage.resources.gpus_per_trial * parallel,
        gpu_class=stage.resources.gpu_class,
        parallel=parallel,
        hours=cost.hours,
        gpu_hours=cost.gpu_hours,
        usd=cost.usd,
        usd_so_far=so_far,
        affordable=limit is None or so_far is None or so_far <= limit,
    )


def _side_cost(study: Study, price: Price, stage: str, runs: int) -> Cost:
    """Cost of shakedown or evaluation: runs one after another on the devices of a trial of the stage."""
    gpus = study.stages[stage].resources.gpus_per_trial
    each, minutes = run_usd(price, max(gpus, 1)), price.minutes_per_run
    if minutes is None and price.usd_per_gpu_hour is None:
        minutes = 0.0  # nothing is said about it, so nothing is counted
    hours = None if minutes is None else runs * minutes / 60
    return Cost(
        trials=runs,
        gpu_hours=None if hours is None else hours * gpus,
        usd=None if each is None else round(each * runs, 6),
        hours=hours,
    )


def _branches(
    study: Study, stages: list[StagePlan], shakedown: Cost, evaluation: Cost, usd: float | None
) -> list[dict[str, Any]]:
    limit = study.budget.usd

    def branch(name: str, cost: float | None) -> dict[str, Any]:
        return {"name": name, "usd": cost, "affordable": limit is None or cost is None or cost <= limit}

    found = [branch("stop at the shakedown", shakedown.usd)]
    found += [branch(f"stop after {stage.name}", stage.usd_so_far) for stage in stages]
    if any(stage.trials_range for stage in stages) and usd is not None:
        parts = [shakedown.usd]
        for stage in stages:
            fewest, most = stage.trials_range or (stage.trials, stage.trials)
            parts.append(None if stage.usd is None else stage.usd * fewest / max(most, 1))
        arms = max(1, evaluation.trials)
        policy = policy_of(study, list(study.stages)[-1])
        last = policy.evaluated_arms((stages[-1].trials_range or (stages[-1].trials, 0))[0] // stages[-1].seeds)
        parts.append(None if evaluation.usd is None else evaluation.usd * last / arms)
        found.append(branch("fewest finalists", total(parts)))
    found.append(branch("every finalist", usd))
    for stage, name, cost in _fallback_costs(study, stages):
        found.append(branch(f"{name} in {stage.name}", total([usd, cost])))
    for name, cost in pivot_costs(study, [stage.name for stage in stages]):
        found.append(branch(f"pivot in {name}", total([usd, cost])))
    return found


def _fallback_costs(study: Study, stages: list[StagePlan]) -> list[tuple[StagePlan, str, float | None]]:
    """Every fallback that a stage of times may take, with what it would cost at most."""
    found = []
    for stage in stages:
        for name, trials in policy_of(study, stage.name).fallback_trials(stage.trials).items():
            found.append((stage, name, stage_cost(study, stage.name, -(-trials // stage.seeds)).usd))
    return found


def _surplus(study: Study, stages: list[StagePlan]) -> list[float | None]:
    """What the most trials of a design and the dearest fallback of each stage cost beside what is planned."""
    found: list[float | None] = []
    for stage in stages:
        if stage.trials_range is not None and stage.trials_range[1] > stage.trials:
            more = (stage.trials_range[1] - stage.trials) // stage.seeds
            found.append(stage_cost(study, stage.name, more).usd)
        costs = [cost for of, _, cost in _fallback_costs(study, stages) if of is stage]
        if costs:
            found.append(None if None in costs else max(cost for cost in costs if cost is not None))
    return found


def _request(study: Study, name: str, selection: Selection) -> dict[str, Any]:
    resources = study.stages[name].resources
    parallel = selection.parallel or resources.parallel
    return {
        "stage": name,
        "gpus": resources.gpus_per_trial * parallel,
        "gpus_per_trial": resources.gpus_per_trial,
        "parallel": parallel,
        "gpu_class": resources.gpu_class,
        "cpu": resources.cpu,
        "memory": resources.memory,
    }
