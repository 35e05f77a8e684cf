"""A designed experiment around the best variants, which the next stage runs.

No hypothesis is tested. What all of the best share is locked; the rest spans their range with a margin: a central
composite design for three factors or more, a plain grid for one or two. Repeats of the
centre and of the best point estimate the noise; the best point has no more of them than keep the factors uncorrelated.
Limits: the region is where the best happened to lie, so an optimum outside is not seen; two-factor interactions that
the verdict lists as aliased can't be told apart.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from podium.components.policies.fastest_to_target import Fallbacks, fallback_problems, race, time_table
from podium.components.study.fields import coerce, is_data_field, no_such_field, study_fields, value_at
from podium.components.study.policy import ArmCount, Policy
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config
from podium.components.study.verdict import Arm, FallbackTaken, MoreTrials, StageResults, VariantRef, Verdict
from podium.components.verdicts.arms import ranked, summaries
from podium.trainer.trial.errors import ConfigError, Problem
from podium.trainer.trial.section import Seconds

# The region around the best variants: what all of them share is locked, the rest spans their range with a margin.

LEVELS = 5
_DIGITS = 4
"""Significant digits of a level that no unit rounds."""


@dataclass(frozen=True)
class Factor:
    """A field that the design varies."""

    field: str
    numeric: bool
    values: tuple[Any, ...]
    """Numeric: five levels, lowest first. Categorical: the core's low and high level."""
    unit: float | None = None
    log: bool = False

    def at(self, code: int) -> Any:
        """The value of a coded level: -2 to 2, or -1 and 1 of a categorical one."""
        if self.numeric:
            return self.values[code + 2]
        return self.values[int(code > 0)]

    def grid(self, count: int) -> list[Any]:
        """So many levels from the lowest to the highest, evenly spread and all different."""
        if not self.numeric:
            return list(self.values[:count])
        low, high = self._scaled(self.values[0]), self._scaled(self.values[-1])
        spread = [low + (high - low) * i / (count - 1) for i in range(count)]
        whole = all(isinstance(value, int) for value in self.values)
        found = [rounded(math.exp(x) if self.log else x, self.unit, whole=whole) for x in spread]
        return list(dict.fromkeys([self.values[0], *found[1:-1], self.values[-1]]))

    def most(self) -> int:
        """Levels that its range has at most."""
        if not self.numeric:
            return len(self.values)
        if self.unit is None:
            return 10**6
        return 1 + round(float(self.values[-1] - self.values[0]) / self.unit)

    def code_of(self, value: Any) -> float:
        """Where a value lies in coded units."""
        if not self.numeric:
            return 1.0 if value == self.values[1] else -1.0
        low, high = self._scaled(self.values[0]), self._scaled(self.values[-1])
        return 4 * (self._scaled(value) - low) / (high - low) - 2

    def _scaled(self, value: Any) -> float:
        return math.log(value) if self.log else float(value)


@dataclass(frozen=True)
class Region:
    """What the best variants say of every field."""

    locked: dict[str, Any]
    factors: tuple[Factor, ...]
    best: dict[str, Any]
    """The leader's values of the factors."""
    notes: tuple[str, ...]


def region_of(
    study: Study, stage: str, everyone: Sequence[VariantRef], tops: Sequence[VariantRef], policy: RefineRegion
) -> Region:
    """The region of `tops`, the leader first; `everyone` tells which fields the stage varied at all."""
    fields = policy.fields or sorted({field for ref in everyone for field in ref.overrides})
    values = {field: [_value(study, stage, ref, field) for ref in tops] for field in fields}
    locked = {field: found[0] for field, found in values.items() if all(value == found[0] for value in found)}
    notes = []
    factors = []
    for name, found in values.items():
        if name in locked:
            continue
        if is_data_field(name):
            locked[name] = found[0]
            notes.append(f"{name} is locked at the leader's {found[0]!r}: another text or tokenizer does not compare")
            continue
        factor = _numeric(name, found, policy) if all(map(_is_number, found)) else _categorical(name, found, notes)
        if factor is None:
            locked[name] = found[0]
            notes.append(f"{name} is locked at the leader's {found[0]!r}: its range has no five levels")
        else:
            factors.append(factor)
    # those that differ most among the best come first: where not all fit, the last ones are locked
    factors.sort(key=lambda factor: (-len(_distinct(values[factor.field])), factor.field))
    return Region(locked, tuple(factors), {f.field: values[f.field][0] for f in factors}, tuple(notes))


def without_last(region: Region) -> Region:
    """The region with its last factor locked at the leader's value."""
    last = region.factors[-1]
    value = region.best[last.field]
    note = f"{last.field} is locked at the leader's {value!r}: so many factors do not fit"
    best = {field: each for field, each in region.best.items() if field != last.field}
    return Region(region.locked | {last.field: value}, region.factors[:-1], best, (*region.notes, note))


def rounded(value: float, unit: float | None, *, whole: bool) -> float | int:
    """A value on its field's raster, or at four significant digits."""
    if unit is None:
        return float(f"{value:.{_DIGITS}g}")
    on_raster = round(value / unit) * unit
    return round(on_raster) if whole else float(f"{on_raster:.12g}")


def _numeric(field: str, found: Sequence[Any], policy: RefineRegion) -> Factor | None:
    whole = all(isinstance(value, int) for value in found)
    unit = policy.multiple_of.get(field, 1 if whole else None)
    log = field in policy.log and min(found) > 0
    low, high = (math.log(x) if log else float(x) for x in (min(found), max(found)))
    centre, half = (low + high) / 2, (high - low) * (0.5 + policy.margin)
    for _ in range(40):
        levels = _levels(centre, half, unit, log=log, whole=whole)
        if len(_distinct(levels)) == LEVELS and all(_allowed(field, level, policy) for level in levels):
            return Factor(field, True, tuple(levels), unit, log)
        if unit is not None and len(_distinct(levels)) < LEVELS:
            half += unit / 4 if not log else 0.05
        elif not _allowed(field, levels[0], policy) and _allowed(field, levels[-1], policy) and unit is not None:
            centre += unit if not log else 0.05
        elif unit is not None and not log and not _allowed(field, levels[-1], policy) and half < 2.25 * unit:
            centre -= unit
        else:
            half *= 0.85
    return None


def _levels(centre: float, half: float, unit: float | None, *, log: bool, whole: bool) -> list[Any]:
    """Five evenly spaced levels; on a raster symmetric about the middle one, so that no two factors correlate."""
    if unit is None or log:
        scaled = [centre + half * code / 2 for code in (-2, -1, 0, 1, 2)]
        return [rounded(math.exp(x) if log else x, unit, whole=whole) for x in scaled]
    middle = round(centre / unit)
    outer = round(half / unit)
    inner = max(1, round(half / unit / 2))
    steps = (-max(outer, 2), -inner, 0, inner, max(outer, 2))
    return [rounded((middle + step) * unit, unit, whole=whole) for step in steps]


def _categorical(field: str, found: Sequence[Any], notes: list[str]) -> Factor:
    """The leader's value against the one that most of the others have."""
    keys = [repr(value) for value in found]
    by_key = dict(zip(keys, found, strict=True))
    others = Counter(key for key in keys if key != keys[0])
    other = min(others, key=lambda key: (-others[key], keys.index(key)))
    left_out = [by_key[key] for key in others if key != other]
    if left_out:
        notes.append(f"{field}: the design has the levels {found[0]!r} and {by_key[other]!r}, not {left_out!r}")
    return Factor(field, False, (found[0], by_key[other]))


def _allowed(field: str, value: Any, policy: RefineRegion) -> bool:
    low, high = policy.bounds.get(field, (-math.inf, math.inf))
    if not low <= value <= high:
        return False
    try:
        coerce(field, value, field)
    except ConfigError:
        return False
    return True


def _value(study: Study, stage: str, ref: VariantRef, field: str) -> Any:
    if is_data_field(field):
        return ref.overrides.get(field, value_at(study.data, field.removeprefix("data.")))
    return value_at(variant_config(study, stage, ref), field)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distinct(values: Sequence[Any]) -> set[str]:
    return {repr(value) for value in values}


def plain(factors: Sequence[Factor]) -> Mapping[str, list[Any]]:
    """Field → its levels, for the verdict."""
    return {factor.field: list(factor.values) for factor in factors}


# A central composite design: a two-level core, two axial points a numeric factor, repeats; or a plain grid.
#
# Coded units: a factor's levels are -2, -1, 0, 1, 2 (lowest, core low, centre, core high, highest). The core is the
# largest of a full factorial, a fraction of resolution V and one of resolution IV that fits beside the axial points
# (`pydoe`): at IV main effects are clear of each other and of two-factor interactions, which may be aliased among
# themselves; which, is reported. Source: G. E. P. Box, K. B. Wilson, JRSS B 13 (1951); D. C. Montgomery, "Design and
# Analysis of Experiments". Limits: a categorical factor has two levels and lives in the core; its axial points
# alternate between them by factor, so that it stays uncorrelated with every numeric one.

MOST_REPEATS = 10
"""Seeds that a stage may have (`schema.MAX_SEEDS_BY_COUNT`)."""
LEAST_CENTRES = 3
MOST_FACTORS = 8
"""More do not fit into about 36 trials at resolution IV."""


@dataclass(frozen=True)
class DesignPoint:
    """A coded level a factor, in the factors' order."""

    name: str
    levels: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Design:
    """Points, and what their estimates mix."""

    kind: str
    points: tuple[DesignPoint, ...]
    resolution: str = ""
    core: int = 0
    """Runs of the core."""
    aliases: tuple[str, ...] = field(default=())
    """Sets of main effects and two-factor interactions that the core can't tell apart: `A:B = C:D`."""

    @property
    def trials(self) -> int:
        """With repeats."""
        return sum(point.repeats for point in self.points)


def composite(names: Sequence[str], numeric: Sequence[bool], *, trials: int) -> Design | None:
    """Core and axial points over these factors, the core repeated where there is room; None where they do not fit.

    What is left of `trials` is for repeats of the centre and of the best point.
    """
    fitting = _core(len(names), sum(numeric), trials)
    if fitting is None:
        return None
    core, resolution = fitting
    axial = 2 * sum(numeric)
    twice = 2 * len(core) + axial + 2 * LEAST_CENTRES + 2 <= trials
    points = [
        DesignPoint(f"core-{i:02d}", tuple(int(level) for level in row), 2 if twice else 1)
        for i, row in enumerate(core, start=1)
    ]
    pair = 0
    for index, is_numeric in enumerate(numeric):
        if not is_numeric:
            continue
        for end, word in ((-2, "low"), (2, "high")):
            levels = [0 if each else (1 if pair % 2 else -1) for each in numeric]
            levels[index] = end
            points.append(DesignPoint(f"axial-{_short(names[index])}-{word}", tuple(levels)))
        pair += 1
    return Design("central composite", tuple(points), resolution, len(core), tuple(aliases(core, names)))


def grid_counts(most: Sequence[int], fixed: Sequence[bool], *, trials: int) -> tuple[tuple[int, ...], int]:
    """Levels a factor and repeats of every point, nearest to this many trials; five levels a numeric factor at least.

    `most` is how many levels a factor has at most; a `fixed` one (categorical) takes just these.
    """
    sizes = [m if f else min(5, m) for m, f in zip(most, fixed, strict=True)]
    least = 5 if math.prod(sizes) <= trials else 3
    choices = [[m] if f else list(range(min(least, m), min(12, m) + 1)) for m, f in zip(most, fixed, strict=True)]
    best: tuple[tuple[int, int, int], tuple[int, ...], int] | None = None
    for levels in itertools.product(*choices):
        size = math.prod(levels)
        for repeats in range(1, MOST_REPEATS + 1):
            # near the number, then at least three repeats of a single factor's points, then even
            few = max(0, (3 if len(levels) == 1 else 1) - repeats)
            key = (abs(size * repeats - trials) + 4 * few, max(levels) - min(levels), repeats)
            if best is None or key < best[0]:
                best = key, levels, repeats
    assert best is not None
    return best[1], best[2]


def aliases(core: Sequence[Sequence[float]], names: Sequence[str]) -> list[str]:
    """Sets of main effects and two-factor interactions that are one and the same column of the core."""
    import numpy as np
    from pydoe import fracfact_aliasing  # most of a second, which only this policy needs

    letters = [chr(ord("a") + index) for index in range(len(names))]
    by_letter = dict(zip(letters, names, strict=True))
    found, _ = fracfact_aliasing(np.array(core))
    told = []
    for line in found:
        terms = [term for term in line.split(" = ") if len(term) <= 2]
        if len(terms) > 1:
            told.append(" = ".join(":".join(by_letter[letter] for letter in term) for term in terms))
    return told


def _core(factors: int, numeric: int, trials: int) -> tuple[list[list[float]], str] | None:
    from pydoe import ff2n, fracfact_by_res

    if factors > MOST_FACTORS:
        return None

    room = trials - 2 * numeric - LEAST_CENTRES - 1
    tries = [("full", ff2n(factors))]
    tries += [(f"{word} or better", fracfact_by_res(factors, number)) for word, number in (("V", 5), ("IV", 4))]
    for resolution, rows in tries:
        if len(rows) <= room or (resolution.startswith("IV") and len(rows) <= room + LEAST_CENTRES):
            return rows.tolist(), resolution
    return None


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", "-")


MOST_CORRELATION = 0.1


class RefineRegion(Policy):
    """A designed experiment around the best variants is the next stage: what they share is locked, the rest varied."""

    policy: Literal["refine_region"] = "refine_region"
    top: int = Field(default=5, ge=2)
    """Variants whose values span the region."""
    fields: list[str] = Field(default=[], max_length=12)
    """Config fields that the design may vary. Empty: every field in which the stage's variants differ."""
    trials: int = Field(default=36, ge=9)
    """Trials of the design, repeats included."""
    slack: int = Field(default=4, ge=0)
    """Trials by which it may differ from `trials`."""
    margin: float = Field(default=0.15, ge=0, le=1)
    """Widens a numeric field's range at either end by this share of it, within what the field allows."""
    log: list[str] = []
    """Fields varied on a logarithmic scale."""
    multiple_of: dict[str, float] = {}
    """Field → its values are multiples of this."""
    bounds: dict[str, list[float]] = {}
    """Field → [least, largest] value that the design may use."""
    by: Literal["restricted_mean", "par2", "median"] = "restricted_mean"
    """How times to target rank the variants; other metrics rank by their mean."""
    horizon_seconds: Seconds | None = Field(default=None, gt=0)
    """As in fastest_to_target."""
    fallbacks: Fallbacks = Fallbacks()
    """As in fastest_to_target, where times rank."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, pair in self.bounds.items():
            if len(pair) != 2 or not pair[0] < pair[1]:
                raise ValueError(f"bounds of {name} must be [least, largest], got {pair}")
        return self

    place: ClassVar[int] = 90
    needs_baseline: ClassVar[bool] = False

    def problems(self, study: Study, stage: str) -> Iterator[Problem]:
        """It needs a next stage, and names fields of the study."""
        yield from super().problems(study, stage)
        yield from fallback_problems(stage, study.stages[stage], self.fallbacks)
        where = f"stages.{stage}.promotion"
        if study.stage_after(stage) is None:
            yield Problem(f"{where}.policy", f"{self.policy} makes the next stage's variants, and this is the last")
        fields = [("fields", self.fields), ("log", self.log), ("bounds", list(self.bounds))]
        for part, named in [*fields, ("multiple_of", list(self.multiple_of))]:
            for name in named:
                if name not in study_fields():
                    yield Problem(f"{where}.{part}", no_such_field(name))

    def next_arms(
        self, study: Study, stage: str, here: ArmCount, *, axes: int | None = None, spent: float | None = None
    ) -> ArmCount:
        """A point each, and repeats of some: it is the trials that are designed."""
        return ArmCount(self.trials - self.slack, self.trials + self.slack, False, self.trials)

    def fallback_trials(self, trials: int) -> dict[str, int]:
        """Repeats and a tighter target."""
        return self.fallbacks.most_trials(trials)

    def decide(self, study: Study, results: StageResults, arms: list[Arm]) -> Verdict | MoreTrials:
        """Promote the points of the design; stop where nobody can be ranked, or a point is no valid config."""
        fallbacks: list[FallbackTaken] = []
        if self.by_time:
            run = race(study, results, arms, fallbacks=self.fallbacks, by=self.by, horizon=self.horizon_seconds)
            if isinstance(run, MoreTrials):
                return run
            order, fallbacks = run.reached, list(run.fallbacks)
            table, more = time_table(run, arms, order), run.numbers()
        else:
            order, more = ranked(arms), {}
            table = summaries(arms, order)
        tops = order[: self.top]
        verdict = Verdict(
            stage=results.stage,
            policy=self.policy,
            parameters={},
            decision="stop",
            reason="stop: nobody reached the target, so there is no region to refine",
            metric=self.metric,
            ranking=table,
            test={"name": "none", "why": "a design proves nothing", **more},
            not_chosen={arm.name: arm.why_not or "gives way to the design" for arm in arms if arm not in tops},
            fallbacks=fallbacks,
            notes=[f"{taken.name}: {taken.reason}" for taken in fallbacks],
        )
        if not tops:
            return verdict
        region = region_of(study, results.stage, results.variants, [arm.variant for arm in tops], self)
        kind, points, details, region = design_of(region, self)
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
                "notes": [*verdict.notes, *region.notes, *_notes(region, details, tops, self)],
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
    following = study.stage_after(stage) or stage
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
