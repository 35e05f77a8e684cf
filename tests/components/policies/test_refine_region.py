"""refine_region: the design around the best variants, against cases worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from podium.components.policies.decide import decide
from podium.components.policies.refine_region import aliases, composite, grid_counts
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.trials import stage_trials, variant_config
from podium.components.study.verdict import StageResults, TrialOutcome, VariantRef, Verdict
from podium.trainer.trial.result import Status

BASE = """\
name: region
question: Where is the optimum?
data: {corpus: {source: builtin}, vocab_size: 300}
config:
  model: {d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-2}
  batch: {sequences: 64}
  evaluation: {every_steps: 4, sequences: 4, batch_sequences: 4}
  checkpoint: {every_steps: 4}
variants:
  other: {overrides: {optimizer.learning_rate: 2e-3}}
stages:
  broad:
    budget: {steps: 8}
    promotion: {policy: refine_region}
  fine:
    budget: {steps: 8}
    promotion: {policy: best_mean}
"""
RATE, BETA, BATCH = "optimizer.learning_rate", "optimizer.beta1", "batch.sequences"
DECAY, WARMUP, CLIP = "optimizer.weight_decay", "schedule.warmup_fraction", "max_grad_norm"
SCHEDULE = "schedule.name"
LAYERS = "model.n_layers"
TOP: dict[str, list[Any]] = {
    RATE: [0.01, 0.012, 0.008, 0.01, 0.011],
    BETA: [0.95, 0.93, 0.96, 0.95, 0.94],
    BATCH: [64, 48, 64, 80, 64],
    LAYERS: [9, 8, 10, 11, 9],
}


def study_with(**promotion: Any) -> Study:
    study = load_study(BASE)
    stage = study.stages["broad"]
    policy = stage.promotion.model_validate(stage.promotion.model_dump() | promotion)
    return study.model_copy(update={"stages": study.stages | {"broad": stage.model_copy(update={"promotion": policy})}})


def decided(study: Study, values: dict[str, list[Any]], *, order: list[int] | None = None) -> Verdict:
    """The verdict over variants with these values, best first, and a bad one that is out of the top."""
    count = len(next(iter(values.values())))
    refs = [VariantRef(name=f"v{i}", overrides={f: v[i] for f, v in values.items()}) for i in range(count)]
    outcomes = [
        TrialOutcome(variant=ref.name, seed=42, fingerprint=ref.name, status=Status.COMPLETED, value=3.0 + i / 100,
                     tokenizer="one")
        for i, ref in enumerate(refs)
    ]  # fmt: skip
    rows = order or range(count)
    results = StageResults(
        stage="broad", variants=[refs[i] for i in rows], seeds=[42], outcomes=[outcomes[i] for i in rows]
    )
    verdict = decide(study, results)
    assert isinstance(verdict, Verdict)
    return verdict


def matrix(verdict: Verdict, fields: list[str], *, repeated: bool) -> np.ndarray:
    rows = []
    for ref in verdict.promoted:
        row = [ref.overrides[f] if isinstance(ref.overrides[f], int | float) else float(ref.overrides[f] == "cosine")
               for f in fields]  # fmt: skip
        rows += [row] * (ref.repeats if repeated else 1)
    return np.array(rows, dtype=float)


def check(verdict: Verdict, fields: list[str], *, numeric: list[str] | None = None, least: int = 32) -> None:
    assert verdict.decision == "promote", verdict.reason
    assert least <= sum(ref.repeats for ref in verdict.promoted) <= 40
    assert max(ref.repeats for ref in verdict.promoted) <= 10
    points = [repr(sorted(ref.overrides.items())) for ref in verdict.promoted]
    assert len(set(points)) == len(points)
    assert len({ref.name for ref in verdict.promoted}) == len(points)
    for repeated in (True, False):
        table = matrix(verdict, fields, repeated=repeated)
        off = np.corrcoef(table, rowvar=False) - np.eye(len(fields))
        assert np.abs(off).max() <= 0.1
    for field in numeric or fields:
        assert len({ref.overrides[field] for ref in verdict.promoted} - {verdict_best(verdict, field)}) >= 4
        assert len({ref.overrides[field] for ref in verdict.promoted if ref.name != "best"}) == 5


def verdict_best(verdict: Verdict, field: str) -> Any:
    return next((ref.overrides[field] for ref in verdict.promoted if ref.name == "best"), None)


def test_a_design_from_a_top_five() -> None:
    verdict = decided(study_with(multiple_of={BATCH: 8}), TOP | {CLIP: [1.0] * 5, WARMUP: [0.1] * 5})
    check(verdict, [RATE, BETA, BATCH, LAYERS])
    assert verdict.test["locked"] == {CLIP: 1.0, WARMUP: 0.1}
    assert all(ref.overrides[CLIP] == 1.0 for ref in verdict.promoted)
    assert (verdict.test["core"], verdict.test["resolution"], verdict.test["aliases"]) == (16, "full", [])
    assert all(ref.overrides[BATCH] % 8 == 0 for ref in verdict.promoted)
    assert all(isinstance(ref.overrides[LAYERS], int) for ref in verdict.promoted)
    assert verdict.test["levels"][RATE] == [0.0074, 0.0087, 0.01, 0.0113, 0.0126]  # 0.008 to 0.012 and 15 % at each end
    kinds = [ref.name.partition("-")[0] for ref in verdict.promoted]
    assert {kind: kinds.count(kind) for kind in ("core", "axial", "best", "centre")} == {
        "core": 16, "axial": 8, "best": 1, "centre": 1,
    }  # fmt: skip
    assert verdict.winner == "v0"
    assert any(note.startswith("locked: ") for note in verdict.notes)


FIVE = TOP | {DECAY: [0.1, 0.12, 0.08, 0.1, 0.11]}
SIX = FIVE | {WARMUP: [0.1, 0.2, 0.15, 0.1, 0.12]}
SEVEN = SIX | {CLIP: [1.0, 0.8, 1.2, 1.0, 0.9]}


@pytest.mark.parametrize("values", [FIVE, SIX, SEVEN, {f: TOP[f] for f in (RATE, BETA, BATCH)}], ids=[5, 6, 7, 3])
def test_designs_of_three_to_seven_factors(values: dict[str, list[Any]]) -> None:
    check(decided(study_with(multiple_of={BATCH: 8}), values), list(values))


def test_a_best_point_that_would_correlate_the_factors_is_left_out_and_the_verdict_says_so() -> None:
    corner = {RATE: [0.012, 0.008, 0.01, 0.009, 0.011], BETA: [0.97, 0.93, 0.95, 0.94, 0.96], LAYERS: [6, 2, 4, 3, 5]}
    for values in (corner, TOP, FIVE, SIX):
        verdict = decided(study_with(), values)
        runs_best = any(ref.name == "best" for ref in verdict.promoted)
        told = any(note.startswith("the best point is left out") for note in verdict.notes)
        assert told != runs_best


def test_the_aliases_of_six_factors_are_those_worked_out_by_hand() -> None:
    # 2^(6-2) with E = ABC and F = ABD: I = ABCE = ABDF = CDEF, so main effects are clear and
    # AB = CE = DF, AC = BE, AD = BF, AE = BC, AF = BD, CD = EF, CF = DE
    design = composite(list("ABCDEF"), [True] * 6, trials=36)
    assert design is not None
    assert (design.core, design.resolution) == (16, "IV or better")
    by_hand = [{"AB", "CE", "DF"}, {"AC", "BE"}, {"AD", "BF"}, {"AE", "BC"}, {"AF", "BD"}, {"CD", "EF"}, {"CF", "DE"}]
    told = [set(line.replace(":", "").split(" = ")) for line in design.aliases]
    assert sorted(map(sorted, told)) == sorted(map(sorted, by_hand))
    # the same from the columns themselves
    core = np.array([point.levels for point in design.points if point.name.startswith("core")])
    columns = {f"{a}{b}": core[:, i] * core[:, j] for (i, a), (j, b) in itertools.combinations(enumerate("ABCDEF"), 2)}
    for group in by_hand:
        first = columns[min(group)]
        assert all(np.array_equal(columns[name], first) for name in group)


def test_a_half_fraction_of_four_factors_is_aliased_as_by_hand() -> None:
    core = [[a, b, c, a * b * c] for a, b, c in itertools.product((-1, 1), repeat=3)]  # D = ABC
    told = {frozenset(line.split(" = ")) for line in aliases(core, ["A", "B", "C", "D"])}
    assert told == {frozenset(pair) for pair in (("A:B", "C:D"), ("A:C", "B:D"), ("B:C", "A:D"))}


def test_a_verdict_says_what_is_aliased() -> None:
    verdict = decided(study_with(multiple_of={BATCH: 8}), SIX)
    assert len(verdict.test["aliases"]) == 7
    assert any(note.startswith("aliased in the core: ") for note in verdict.notes)


def test_a_categorical_factor_is_in_the_core_and_uncorrelated() -> None:
    values = TOP | {SCHEDULE: ["cosine", "constant", "cosine", "constant", "cosine"]}
    verdict = decided(study_with(multiple_of={BATCH: 8}), values)
    check(verdict, list(values), numeric=list(TOP))
    core = [ref for ref in verdict.promoted if ref.name.startswith("core")]
    assert sum(ref.overrides[SCHEDULE] == "cosine" for ref in core) == len(core) / 2


def test_a_logarithmic_factor_has_equal_ratios() -> None:
    verdict = decided(
        study_with(log=[RATE], multiple_of={BATCH: 8}, margin=0.0), TOP | {RATE: [1e-3, 1e-2, 2e-3, 5e-3, 4e-3]}
    )
    levels = verdict.test["levels"][RATE]
    assert (levels[0], levels[-1]) == (1e-3, 1e-2)
    ratios = [b / a for a, b in itertools.pairwise(levels)]
    assert ratios == pytest.approx([10**0.25] * 4, rel=2e-3)
    assert verdict.test["max_correlation"] <= 0.1


def test_levels_stay_within_what_a_field_and_the_study_allow() -> None:
    values = TOP | {BETA: [0.99, 0.9, 0.999, 0.95, 0.98], LAYERS: [1, 2, 1, 1, 2]}
    verdict = decided(study_with(bounds={BATCH: [32, 80]}, multiple_of={BATCH: 8}), values)
    check(verdict, list(values))
    assert max(ref.overrides[BETA] for ref in verdict.promoted) < 1
    assert min(ref.overrides[LAYERS] for ref in verdict.promoted) >= 1
    assert all(32 <= ref.overrides[BATCH] <= 80 for ref in verdict.promoted)


def test_one_or_two_free_factors_are_a_plain_grid() -> None:
    two = decided(study_with(), {RATE: TOP[RATE], BETA: TOP[BETA]})
    assert two.test["design"] == "grid"
    check_grid(two, 36, 6)
    one = decided(study_with(), {RATE: TOP[RATE]})
    check_grid(one, 12, 12)
    assert {ref.repeats for ref in one.promoted} == {3}
    mixed = decided(study_with(), {RATE: TOP[RATE], SCHEDULE: ["cosine", "constant"] * 2 + ["cosine"]})
    assert 32 <= sum(ref.repeats for ref in mixed.promoted) <= 40


def test_a_grid_that_is_too_small_is_filled_by_repeats_of_its_middle() -> None:
    study = study_with(bounds={LAYERS: [1, 5], BATCH: [32, 96]}, multiple_of={BATCH: 16})
    verdict = decided(study, {LAYERS: [1, 5, 3, 2, 4], BATCH: [32, 96, 64, 48, 80]})
    assert (len(verdict.promoted), sum(ref.repeats for ref in verdict.promoted)) == (25, 34)
    middle = next(ref for ref in verdict.promoted if ref.repeats > 1)
    assert middle.overrides == {LAYERS: 3, BATCH: 64}


def check_grid(verdict: Verdict, points: int, levels: int) -> None:
    assert len(verdict.promoted) == points
    assert sum(ref.repeats for ref in verdict.promoted) == 36
    assert len({ref.overrides[RATE] for ref in verdict.promoted}) == levels


@pytest.mark.parametrize("most", [(5,), (12,), (6, 6), (7, 10**6), (2, 10**6), (2, 2), (3,)])
def test_grids_are_about_as_large_as_asked(most: tuple[int, ...]) -> None:
    levels, repeats = grid_counts(most, [m < 5 for m in most], trials=36)
    assert abs(math.prod(levels) * repeats - 36) <= 4 or repeats == 10


def test_a_degenerate_top_is_run_again() -> None:
    verdict = decided(study_with(), {RATE: [0.01] * 5})
    assert [(ref.name, ref.repeats) for ref in verdict.promoted] == [("best", 10)]
    assert verdict.promoted[0].overrides == {RATE: 0.01}
    few = decided(study_with(), {RATE: [0.01, 0.02], BETA: [0.9, 0.95]})
    assert few.test["design"] == "grid"
    assert any("only 2 of 5" in note for note in few.notes)


def test_more_factors_than_fit_are_locked_and_the_verdict_says_so() -> None:
    values = SEVEN | {
        "optimizer.beta2": [0.95, 0.99, 0.97, 0.98, 0.96],
        "model.d_ff": [32, 48, 40, 64, 56],
    }
    verdict = decided(study_with(multiple_of={BATCH: 8}), values)
    assert len(verdict.test["levels"]) == 8
    assert any("so many factors do not fit" in note for note in verdict.notes)
    check(verdict, list(verdict.test["levels"]))


def test_the_order_of_variants_changes_no_design() -> None:
    study = study_with(multiple_of={BATCH: 8})
    first = decided(study, TOP)
    again = decided(study, TOP, order=[3, 1, 4, 0, 2])
    assert again.promoted == first.promoted
    assert again.test == first.test


def test_every_point_is_a_config_that_the_next_stage_runs_with_its_repeats() -> None:
    study = study_with(multiple_of={BATCH: 8})
    verdict = decided(study, TOP)
    for ref in verdict.promoted:
        assert variant_config(study, "fine", ref).batch.sequences == ref.overrides[BATCH]
    data = {ref.name: "x" for ref in verdict.promoted}
    trials = list(
        stage_trials(study, "fine", verdict.promoted, seeds=None, data=data, run_id="r", store_uri="file:///x")
    )
    assert len(trials) == verdict.test["trials"]
    assert len({trial.key for trial in trials}) == len(trials)
    centre = [trial.seed for trial in trials if trial.variant.name == "centre"]
    assert centre == list(range(52, 52 + len(centre)))


def test_a_point_that_can_not_be_run_stops_the_stage(stage_of: Callable[..., StageResults]) -> None:
    values = {RATE: TOP[RATE], "model.n_heads": [2, 4, 8, 2, 4], BETA: TOP[BETA]}
    verdict = decided(study_with(), values)
    assert verdict.decision == "stop"
    assert "can't be run" in verdict.reason
