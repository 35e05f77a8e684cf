"""The fine stage of the shipped study from a given top five: locks, levels, size, and that every point can be run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from podium.components.policies.decide import decide
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.trials import variant_config, wave_trials
from podium.components.study.verdict import AskedTrial, MoreTrials, StageResults, TrialOutcome, Verdict
from podium.trainer.trial.result import Status

RATE, MOMENTUM, LAZY = "optimizer.learning_rate", "optimizer.momentum", "model.projection_every"
BATCH, ORTHOGONALIZATION = "batch.sequences", "optimizer.orthogonalization"
VR, CWD = "optimizer.variance_reduction", "optimizer.cautious_weight_decay"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study("time-to-target")


def broad(study: Study) -> tuple[list[AskedTrial], list[MoreTrials]]:
    first = wave_trials(study, "broad", 0, {}, [])
    second = wave_trials(study, "broad", 1, {"A": {"orthogonalization": "polar_express"}}, first)
    return [*first, *second], [MoreTrials(kind="wave", reason="C and D", trials=second)]


def decided(study: Study, top: list[str]) -> Verdict:
    """All 48 with a time; these variants have the least, in this order."""
    asked, answers = broad(study)
    names = {each.variant.name for each in asked}
    assert set(top) <= names, sorted(names)
    outcomes = []
    for each in asked:
        name = each.variant.name
        seconds = 60.0 + 2 * top.index(name) if name in top else 100.0 + each.seed
        outcomes.append(
            TrialOutcome(
                variant=name, seed=each.seed, fingerprint=f"{name}{each.seed}", status=Status.TARGET_REACHED,
                value=seconds, tokenizer="one", device="H100", time_to_target_seconds=seconds,
                training_seconds=seconds, targets={"5.5": 0.6 * seconds, "5": seconds, "4.8": None},
            )
        )  # fmt: skip
    refs = list({each.variant.name: each.variant for each in asked}.values())
    results = StageResults(stage="broad", variants=refs, seeds=[42], outcomes=outcomes, asked=answers)
    verdict = decide(study, results)
    assert isinstance(verdict, Verdict), verdict
    return verdict


TOP = [
    "lr-0.01-lazy-10-batch-64", "lr-0.008-lazy-8-batch-64", "lr-0.012-lazy-10-batch-64",
    "lr-0.01-lazy-10-batch-64-momentum-0.97", "lr-0.01-lazy-10-batch-64-momentum-0.9",
]  # fmt: skip


def test_the_design_around_the_expected_best_locks_and_spans_what_the_five_do(study: Study) -> None:
    verdict = decided(study, TOP)
    assert verdict.decision == "promote"
    assert verdict.test["top"] == TOP
    assert verdict.test["locked"] == {BATCH: 64, ORTHOGONALIZATION: "polar_express", VR: False, CWD: False}
    levels: dict[str, list[Any]] = verdict.test["levels"]
    assert set(levels) == {RATE, MOMENTUM, LAZY}
    assert all(len(values) >= 5 for values in levels.values())
    assert 32 <= sum(ref.repeats for ref in verdict.promoted) <= 40
    # inside the five's range and 15 % of it at either end; an integer's five levels need 7 to 11
    span = 0.15 * math.log(0.012 / 0.008)
    low, high = math.log(0.008) - span, math.log(0.012) + span
    assert all(low - 1e-3 <= math.log(rate) <= high + 1e-3 for rate in levels[RATE])
    assert all(0.9 - 0.0106 <= value <= 0.97 + 0.0106 for value in levels[MOMENTUM])
    assert all(isinstance(value, int) and 7 <= value <= 11 for value in levels[LAZY])
    assert verdict.test["max_correlation"] <= 0.1


def test_every_point_is_a_config_of_the_fine_stage_with_the_locked_values(study: Study) -> None:
    verdict = decided(study, TOP)
    for ref in verdict.promoted:
        config = variant_config(study, "fine", ref).model_dump()
        assert config["batch"]["sequences"] == 64
        assert config["optimizer"]["orthogonalization"] == "polar_express"
        assert config["optimizer"]["learning_rate"] == ref.overrides[RATE]
        assert config["model"]["projection_every"] == ref.overrides[LAZY]


def test_switches_and_batches_go_into_the_design_where_the_five_differ_in_them(study: Study) -> None:
    verdict = decided(
        study,
        [
            "lr-0.01-lazy-10-batch-64", "ns-lr-0.01-lazy-10-batch-64", "vr-lr-0.01-lazy-10-batch-64",
            "lr-0.012-lazy-15-batch-128", "cwd-lr-0.01-lazy-10-batch-64",
        ],
    )  # fmt: skip
    assert verdict.test["locked"] == {MOMENTUM: 0.95}
    levels = verdict.test["levels"]
    assert set(levels) == {RATE, LAZY, BATCH, ORTHOGONALIZATION, VR, CWD}
    assert sorted(levels[VR]) == [False, True]
    assert all(batch % 16 == 0 for batch in levels[BATCH])
    assert 32 <= sum(ref.repeats for ref in verdict.promoted) <= 40
    assert verdict.test["resolution"].startswith("IV")


def test_five_that_are_replicates_of_one_are_one_point_repeated_or_a_design(study: Study) -> None:
    verdict = decided(study, ["baseline"])
    # the others are equally slow: the region is theirs and the base config's
    assert verdict.decision == "promote"
    assert verdict.winner == "baseline"
    for ref in verdict.promoted:
        variant_config(study, "fine", ref)
