"""fastest_to_target and if_affordable: what has no figure is neither dropped nor made one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.policies.decide import decide
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.verdict import StageResults, TrialOutcome, VariantRef, Verdict, to_markdown
from podium.components.verdicts.stats import Time, summarise
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.result import Status

STUDY = """\
name: times
question: Which is the fastest?
data: {corpus: {source: builtin}, vocab_size: 300}
config:
  model: {d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 4}
  evaluation: {every_steps: 4, sequences: 4, batch_sequences: 4}
  checkpoint: {every_steps: 4}
variants:
  one: {overrides: {optimizer.learning_rate: 2e-3}}
  two: {overrides: {optimizer.learning_rate: 3e-3}}
stages:
  race:
    budget: {steps: 8}
    seeds: 2
    stop: {target: {loss: 5.0}}
    promotion: {policy: POLICY}
  last:
    budget: {steps: 8}
    promotion: {policy: best_mean}
"""
Seed = tuple[float | None, float | None, Status]
HIT, MISS = Status.TARGET_REACHED, Status.MISSED_TARGET


def study_of(policy: str) -> Study:
    return load_study(STUDY.replace("POLICY", policy))


def race(arms: dict[str, list[Seed | None]], *, devices: dict[str, str] | None = None) -> StageResults:
    outcomes = [
        TrialOutcome(
            variant=name, seed=42 + i, fingerprint=f"{name}{i}", status=seed[2], value=seed[0], tokenizer="one",
            time_to_target_seconds=seed[0], training_seconds=seed[1], device=(devices or {}).get(name, "H100"),
        )
        for name, row in arms.items() for i, seed in enumerate(row) if seed is not None
    ]  # fmt: skip
    return StageResults(
        stage="race", variants=[VariantRef(name=name) for name in arms], seeds=[42, 43], outcomes=outcomes
    )


def verdict_of(study: Study, results: StageResults) -> Verdict:
    verdict = decide(study, results)
    assert isinstance(verdict, Verdict)
    assert to_markdown(verdict)
    return verdict


def hit(seconds: float) -> Seed:
    return seconds, seconds, HIT


def test_a_miss_is_a_censored_time() -> None:
    arms = {"baseline": [hit(80), hit(90)], "one": [hit(50), (None, 100.0, MISS)], "two": [hit(60), hit(64)]}
    verdict = verdict_of(study_of("fastest_to_target"), race(arms))
    assert [row.variant for row in verdict.ranking] == ["two", "one", "baseline"]
    # the longest time is 100 s: one's restricted mean is (50 + 100) / 2, its PAR-2 (50 + 200) / 2
    assert verdict.test["times"]["one"] == {
        "reached": 1,
        "seeds": 2,
        "restricted_mean": 75.0,
        "par2": 125.0,
        "median": 50.0,
    }
    assert verdict.ranking[1].values == {"42": 50.0, "43": None}
    assert [ref.name for ref in verdict.promoted] == ["two"]
    by_par2 = verdict_of(study_of("fastest_to_target, by: par2, top: 3"), race(arms))
    assert [ref.name for ref in by_par2.promoted] == ["two", "baseline", "one"]
    by_median = verdict_of(study_of("fastest_to_target, by: median"), race(arms))
    assert by_median.winner == "one"
    assert not verdict.proven


def test_an_arm_that_died_never_arrives_and_one_that_broke_says_nothing() -> None:
    arms = {
        "one": [hit(90), hit(92)],
        "two": [hit(10), (None, 5.0, Status.DIVERGED)],
        "three": [hit(91), (None, None, Status.BROKEN)],
    }
    study = study_of("fastest_to_target, horizon_seconds: 600")
    stage = study.stages["race"].model_copy(update={"max_broken": 1})
    study = study.model_copy(update={"stages": study.stages | {"race": stage}})
    verdict = verdict_of(study, race(arms))
    assert [row.variant for row in verdict.ranking] == ["one", "three", "two"]
    assert verdict.test["times"]["two"]["restricted_mean"] == pytest.approx((10 + 600) / 2)
    assert verdict.test["times"]["three"]["seeds"] == 1
    assert verdict.counts == {"broken": 1, "diverged": 1, "target_reached": 4}


def test_nobody_at_the_target_is_a_stop() -> None:
    arms: dict[str, list[Seed | None]] = {"one": [(None, 100.0, MISS)] * 2, "two": [(None, 90.0, MISS)] * 2}
    verdict = verdict_of(study_of("fastest_to_target"), race(arms))
    assert (verdict.decision, verdict.winner) == ("stop", None)
    assert "nobody reached the target" in verdict.reason


def test_times_of_two_device_types_are_refused() -> None:
    results = race({"one": [hit(90), hit(92)], "two": [hit(10), hit(11)]}, devices={"two": "V100"})
    verdict = verdict_of(study_of("fastest_to_target"), results)
    assert verdict.decision == "stop"
    assert "times on 2 types of device (H100, V100)" in verdict.reason


@pytest.mark.parametrize("arms", [{}, {"one": [None, None]}])
def test_no_times_are_not_enough_results(arms: dict[str, list[Seed | None]]) -> None:
    verdict = verdict_of(study_of("fastest_to_target"), race(arms))
    assert verdict.decision == "stop"
    assert "not enough results" in verdict.reason


def test_the_three_statistics_against_cases_by_hand() -> None:
    # Kaplan-Meier: 10 s (4 at risk) -> 3/4, 20 s is censored, 30 s (2 at risk) -> 3/8, 40 s -> 0
    times = [Time(10, True), Time(20, False), Time(30, True), Time(40, True)]
    found = summarise(times, 40)
    assert found.restricted_mean == pytest.approx(10 + 0.75 * 20 + 0.375 * 10)
    assert found.par2 == pytest.approx((10 + 80 + 30 + 40) / 4)
    assert found.median == 30
    assert (found.reached, found.seeds) == (3, 4)
    late = summarise([Time(50, True), Time(20, False)], 40)
    assert (late.reached, late.median, late.restricted_mean) == (0, None, 40)
    assert math.isinf(late.by("median"))


def test_fast_arms_span_the_region_that_is_refined() -> None:
    rates: dict[str, float] = {"a": 1e-3, "b": 2e-3, "c": 3e-3}
    study = study_of("refine_region, metric: time_to_target_seconds, top: 2, trials: 12")
    results = race({name: [hit(10 * i), hit(11 * i)] for i, name in enumerate(rates, start=1)})
    refs = [VariantRef(name=name, overrides={"optimizer.learning_rate": rate}) for name, rate in rates.items()]
    verdict = verdict_of(study, results.model_copy(update={"variants": refs}))
    found = sorted(ref.overrides["optimizer.learning_rate"] for ref in verdict.promoted)
    assert (found[0], found[-1]) == (0.85e-3, 2.15e-3)
    assert 8 <= sum(ref.repeats for ref in verdict.promoted) <= 16


# ---- if_affordable ----


def unpaid(arms: list[str]) -> StageResults:
    return race({name: [(None, None, Status.NOT_RUN_BUDGET)] * 2 for name in arms})


def test_what_could_not_be_paid_stops_nothing() -> None:
    study = study_of("if_affordable")
    verdict = verdict_of(study, unpaid(["one", "two"]))
    assert verdict.decision == "promote"
    assert {ref.name for ref in verdict.promoted} == {"one", "two"}
    assert verdict.counts == {"not_run_budget": 4}
    before = verdict.model_copy(update={"promoted": [VariantRef(name="earlier")]})
    after = verdict_of(study, unpaid(["one"]).model_copy(update={"previous": [before]}))
    assert [ref.name for ref in after.promoted] == ["earlier"]


def test_what_could_be_paid_goes_on(outcome: Callable[..., Any]) -> None:
    study = study_of("if_affordable")
    results = unpaid(["one", "two"])
    paid = [outcome("one", seed, 3.0) for seed in (42, 43)]
    results = results.model_copy(update={"outcomes": [*paid, *results.outcomes[2:]]})
    verdict = verdict_of(study, results)
    assert [ref.name for ref in verdict.promoted] == ["one"]
    assert any("did not pay for it: two" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("fastest_to_target, metric: final_val_loss", "must be 'time_to_target_seconds'"),
        ("beats_baseline, pivot: {}", "this is the first stage"),
        ("refine_region, fields: [optimizer.rate]", "no field 'optimizer.rate'"),
        ("refine_region, bounds: {optimizer.learning_rate: [2, 1]}", "must be [least, largest]"),
    ],
)
def test_a_policy_that_can_not_work_is_refused(policy: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        study_of(policy)
    assert said in str(refused.value)
