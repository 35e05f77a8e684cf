"""A designed experiment around the best variants, which the next stage runs.

No hypothesis is tested. What all of the best share is locked; the rest spans their range with a margin: a central
composite design for three factors or more, a plain grid for one or two (`composite.py`, `region.py`). Repeats of the
centre and of the best point estimate the noise; the best point has no more of them than keep the factors uncorrelated.
Limits: the region is where the best happened to lie, so an optimum outside is not seen; two-factor interactions that
the verdict lists as aliased can't be told apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from podium.components.study.promotion import RefineRegion
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config
from podium.components.verdicts.composite import LEAST_CENTRES, MOST_REPEATS, composite, grid_counts
from podium.components.verdicts.ranking import Arm, ranked, summaries
from podium.components.verdicts.region import Region, plain, region_of, without_last
from podium.components.verdicts.time_fallbacks import race
from podium.components.verdicts.times import time_table
from podium.components.verdicts.verdict import FallbackTaken, MoreTrials, StageResults, VariantRef, Verdict
from podium.trainer.errors import ConfigError

MOST_CORRELATION = 0.1


def refine_region(study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
    """Promote the points of the design; stop where nobody can be ranked, or a point is no valid config."""
    policy = study.stages[results.stage].promotion
    assert isinstance(policy, RefineRegion)
    fallbacks: list[FallbackTaken] = []
    if policy.metric == "time_to_target_seconds":
        run = race(study, results, arms, policy)
        if isinstance(run, MoreTrials):
            return run
        order, fallbacks = run.reached, list(run.fallbacks)
        table, more = time_table(run, arms, order), run.numbers()
    else:
        order, more = ranked(arms), {}
        table = summaries(arms, order)
    tops = order[: policy.top]
    verdict = Verdict(
        stage=results.stage,
        policy=policy.policy,
        parameters={},
        decision="stop",
        reason="stop: nobody reached the target, so there is no region to refine",
        metric=policy.metric,
        ranking=table,
        test={"name": "none", "why": "a design proves nothing", **more},
        not_chosen={arm.name: arm.why_not or "gives way to the design" for arm in arms if arm not in tops},
        fallbacks=fallbacks,
        notes=[f"{taken.name}: {taken.reason}" for taken in fallbacks],
    )
    if not tops:
        return verdict
    region = region_of(study, results.stage, results.variants, [arm.variant for arm in tops], policy)
    kind, points, details, region = design_of(region, policy)
    refs = [_ref(study, region, name, values, repeats) for name, values, repeats in points]
    problem = _problem(study, results.stage, refs)
    if problem:
        return verdict.model_copy(update={"reason": f"stop: the design has a point that can't be run: {problem}"})
    trials = sum(ref.repeats for ref in refs)
    leaders = ", ".join(arm.name for arm in tops)
    return verdict.model_copy(
        update={
            "decision": "promote",
            "reason": f"promote a {kind} of {trials} trials around {leaders}: {_varied(region)}",
            "promoted": refs,
            "winner": tops[0].name,
            "claim": "candidate",
            "test": verdict.test
            | {
                "design": kind,
                "trials": trials,
                "top": [arm.name for arm in tops],
                "locked": region.locked,
                "levels": plain(region.factors),
                "log": [factor.field for factor in region.factors if factor.log],
                "max_correlation": max_correlation(region, points),
                **details,
            },
            "notes": [*verdict.notes, *region.notes, *_notes(region, details, tops, policy)],
        }
    )


Planned = tuple[str, dict[str, Any], int]
"""A point: its name, its values of the factors, its repeats."""


def design_of(region: Region, policy: RefineRegion) -> tuple[str, list[Planned], dict[str, Any], Region]:
    """Kind, points and alias structure; and the region, of which factors are locked that do not fit."""
    if not region.factors:
        return "repeat of one point", [("best", {}, min(MOST_REPEATS, policy.trials))], {}, region
    if len(region.factors) <= 2:
        return "grid", _grid(region, policy), {}, region
    while True:
        names = [factor.field for factor in region.factors]
        numeric = [factor.numeric for factor in region.factors]
        design = composite(names, numeric, trials=policy.trials)
        if design is not None:
            break
        region = without_last(region)
        if len(region.factors) <= 2:
            return "grid", _grid(region, policy), {}, region
    points = [
        (point.name, {f.field: f.at(c) for f, c in zip(region.factors, point.levels, strict=True)}, point.repeats)
        for point in design.points
    ]
    centre = {f.field: f.at(0) if f.numeric else region.best[f.field] for f in region.factors}
    details = {"resolution": design.resolution, "core": design.core, "aliases": list(design.aliases)}
    filled = _filled(region, points, centre, policy.trials)
    if not any(name == "best" for name, _, _ in filled):
        note = f"the best point is left out: with it the factors would correlate by more than {MOST_CORRELATION:g}"
        region = replace(region, notes=(*region.notes, note))
    return design.kind, filled, details, region


def _filled(region: Region, points: list[Planned], centre: dict[str, Any], trials: int) -> list[Planned]:
    """With repeats of the best point, as many as half of the rest and the correlations allow, and of the centre."""
    left = max(2, trials - sum(repeats for _, _, repeats in points))
    for bests in range(min(MOST_REPEATS, left // 2, max(1, left - LEAST_CENTRES)), 0, -1):
        tried = _merged([("best", region.best, bests), *points, ("centre", centre, min(MOST_REPEATS, left - bests))])
        if max_correlation(region, tried) <= MOST_CORRELATION:
            return tried
    return _merged([*points, ("centre", centre, min(MOST_REPEATS, left))])


def _grid(region: Region, policy: RefineRegion) -> list[Planned]:
    counts, repeats = grid_counts(
        [factor.most() for factor in region.factors],
        [not factor.numeric for factor in region.factors],
        trials=policy.trials,
    )
    levels = [factor.grid(count) for factor, count in zip(region.factors, counts, strict=True)]
    names = [factor.field for factor in region.factors]
    rows = [dict(zip(names, row, strict=True)) for row in itertools.product(*levels)]
    points: list[Planned] = [(f"grid-{i:02d}", row, repeats) for i, row in enumerate(rows, start=1)]
    left = policy.trials - len(points) * repeats
    if left > policy.slack:  # the middle's repeats fill it and correlate nothing

        def distance(index: int) -> float:
            return math.fsum(factor.code_of(rows[index][factor.field]) ** 2 for factor in region.factors)

        middle = min(range(len(rows)), key=distance)
        name, row, _ = points[middle]
        points[middle] = (name, row, min(MOST_REPEATS, repeats + left))
    return points


def _merged(points: Iterable[Planned]) -> list[Planned]:
    """Points with the same values are one, repeated as often as all together, up to what a stage's seeds allow."""
    found: dict[str, Planned] = {}
    for name, values, repeats in points:
        key = repr(sorted(values.items()))
        known = found.get(key)
        first, so_far = (name, 0) if known is None else (known[0], known[2])
        found[key] = (first, values, min(so_far + repeats, MOST_REPEATS))
    return list(found.values())


def max_correlation(region: Region, points: Sequence[Planned]) -> float:
    """The largest absolute correlation of two factors, over trials or over different points, whichever is larger.

    Over values as they are, logarithms where a factor is varied on a logarithmic scale.
    """
    worst = 0.0
    for weighted in (True, False):
        weights = [repeats if weighted else 1 for _, _, repeats in points]
        columns = [[factor.code_of(values[factor.field]) for _, values, _ in points] for factor in region.factors]
        for a, b in itertools.combinations(columns, 2):
            worst = max(worst, abs(_correlation(a, b, weights)))
    return worst


def _correlation(a: list[float], b: list[float], weights: list[int]) -> float:
    size = sum(weights)
    mean_a, mean_b = (math.fsum(w * x for w, x in zip(weights, c, strict=True)) / size for c in (a, b))
    across = math.fsum(w * (x - mean_a) * (y - mean_b) for w, x, y in zip(weights, a, b, strict=True))
    spread_a = math.fsum(w * (x - mean_a) ** 2 for w, x in zip(weights, a, strict=True))
    spread_b = math.fsum(w * (x - mean_b) ** 2 for w, x in zip(weights, b, strict=True))
    return across / math.sqrt(spread_a * spread_b) if spread_a and spread_b else 0.0


def _ref(study: Study, region: Region, name: str, values: Mapping[str, Any], repeats: int) -> VariantRef:
    said = ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in values.items())
    overrides = region.locked | dict(values)
    axis_values = {axis: overrides[each.field] for axis, each in study.axes.items() if each.field in overrides}
    return VariantRef(
        name=name, overrides=overrides, description=said or "the leader again", axis_values=axis_values, repeats=repeats
    )


def _problem(study: Study, stage: str, refs: Iterable[VariantRef]) -> str:
    """The first thing wrong with a point in the stage that runs it; empty if all can be run."""
    stages = list(study.stages)
    following = stages[min(stages.index(stage) + 1, len(stages) - 1)]
    for ref in refs:
        try:
            variant_config(study, following, ref)
        except ConfigError as error:
            return f"{ref.name}: {error.problems[0]}"
    return ""


def _varied(region: Region) -> str:
    if not region.factors:
        return "they have the same values, so it is run again"
    return "; ".join(
        f"{f.field.rpartition('.')[2]} {f.values[0]} to {f.values[-1]}"
        if f.numeric
        else f"{f.field.rpartition('.')[2]} {f.values[0]!r} or {f.values[1]!r}"
        for f in region.factors
    )


def _notes(region: Region, details: Mapping[str, Any], tops: Sequence[Arm], policy: RefineRegion) -> list[str]:
    notes = []
    if len(tops) < policy.top:
        notes.append(f"only {len(tops)} of {policy.top} could be ranked")
    if region.locked:
        notes.append("locked: " + ", ".join(f"{field} = {value!r}" for field, value in sorted(region.locked.items())))
    if details:
        notes.append(f"core of {details['core']} runs, resolution {details['resolution']}")
        if details["aliases"]:
            notes.append("aliased in the core: " + "; ".join(details["aliases"]))
    return notes
