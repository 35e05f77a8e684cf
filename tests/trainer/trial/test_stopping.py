from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podium.trainer.builtin.checks import impossible_rules, meaning_of
from podium.trainer.builtin.config import TrainConfig, load_config
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.result import Point, Status, mean_curve
from podium.trainer.trial.stopping import KillCriterion, KillRule, StopRules, first_stop, kill_point

STEP = 250_000


def curve(*losses: float | None, every: int = STEP, norms: Sequence[float | None] | None = None) -> list[Point]:
    return [
        Point(
            step=number,
            tokens=number * every,
            val_loss=loss,
            gradient_norm=norms[number - 1] if norms else 1.0,
        )
        for number, loss in enumerate(losses, 1)
    ]


def of_perplexity(*perplexities: float) -> list[Point]:
    return curve(*(math.log(value) for value in perplexities))


def rule(*criteria: dict[str, Any], **fields: Any) -> KillRule:
    chosen = list(criteria) or [{"metric": "perplexity", "threshold": 0.5}]
    return KillRule.model_validate({"criteria": chosen, "span_tokens": 1_000_000, "min_tokens": 1_000_000} | fields)


REFERENCE = of_perplexity(*[100.0] * 20)


def test_a_run_worse_from_its_first_look_dies_when_the_looks_span_a_million_tokens() -> None:
    kill = kill_point(of_perplexity(*[100.6] * 20), REFERENCE, rule())
    assert kill is not None
    assert kill.tokens == 1_250_000  # looks at 250k … 1,250k span 1M; at 1,000k they span only 750k
    assert "perplexity 100.6000 against 100.0000, limit +0.5 PPL" in kill.reason
    assert "from 250k to 1.25M" in kill.reason


def test_exactly_the_threshold_counts_as_worse_and_less_does_not() -> None:
    reference = curve(*[3.0] * 8)
    nats = rule({"metric": "loss", "threshold": 0.5})
    assert kill_point(curve(*[3.5] * 8), reference, nats) is not None
    assert kill_point(curve(*[3.4999] * 8), reference, nats) is None


def test_one_good_look_starts_the_span_anew() -> None:
    own = of_perplexity(*[101.0] * 4, 100.2, *[101.0] * 15)
    kill = kill_point(own, REFERENCE, rule())
    assert kill is not None
    assert kill.tokens == 10 * STEP + 0 * STEP  # worse again from look 6 (1.5M) on, over 1M tokens: look 10


def test_nothing_is_killed_before_min_tokens_but_earlier_looks_count() -> None:
    kill = kill_point(of_perplexity(*[101.0] * 20), REFERENCE, rule(min_tokens=3_000_000))
    assert kill is not None
    assert kill.tokens == 3_000_000


def test_a_late_fall_behind_is_killed_a_span_after_it_began() -> None:
    own = of_perplexity(*[100.0] * 10, *[102.0] * 10)
    kill = kill_point(own, REFERENCE, rule())
    assert kill is not None
    assert kill.tokens == 11 * STEP + 1_000_000


def test_a_missing_value_on_either_side_is_no_evidence() -> None:
    own, reference = curve(*[5.0] * 7), curve(*[4.0] * 7)
    assert kill_point(own, reference, rule()) is not None
    gap = 3
    for mine, theirs in (
        ([*own[:gap], replace(own[gap], val_loss=None), *own[gap + 1 :]], reference),
        (own, [*reference[:gap], replace(reference[gap], val_loss=None), *reference[gap + 1 :]]),
    ):
        assert kill_point(mine, theirs, rule()) is None


def test_declared_looks_ignore_all_other_evaluations() -> None:
    declared = rule(looks=[STEP, 5 * STEP])
    own = of_perplexity(101.0, 99.0, 99.0, 99.0, 101.0)
    kill = kill_point(own, REFERENCE, declared)
    assert kill is not None
    assert kill.tokens == 5 * STEP
    assert kill_point(own, REFERENCE, rule()) is None


def test_a_declared_look_that_a_curve_passed_without_a_point_breaks_the_span() -> None:
    own = of_perplexity(*[101.0] * 6)
    holey = [point for point in REFERENCE if point.tokens != 3 * STEP]
    looks = [number * STEP for number in range(1, 7)]
    assert kill_point(own, REFERENCE, rule(looks=looks)) is not None
    assert kill_point(own, holey, rule(looks=looks)) is None


def test_curves_of_other_cadence_are_compared_where_they_meet() -> None:
    own = curve(*[5.0] * 20)
    every_half = curve(*[4.0] * 10, every=2 * STEP)
    kill = kill_point(own, every_half, rule())
    assert kill is not None
    assert kill.tokens == 6 * STEP  # shared looks at 2, 4, 6 × STEP span 1M


def test_a_threshold_in_sigmas_follows_the_noise() -> None:
    reference = curve(*[4.0] * 8)
    own = curve(*[4.005] * 8)
    assert kill_point(own, reference, rule({"metric": "loss", "sigmas": 3.0, "sigma": 0.0012})) is not None
    assert kill_point(own, reference, rule({"metric": "loss", "sigmas": 3.0, "sigma": 0.0020})) is None


def test_joined_criteria_need_one_or_all() -> None:
    reference = curve(*[4.0] * 8)
    own = curve(*[4.5] * 8, norms=[1.2] * 8)
    criteria = ({"metric": "loss", "threshold": 0.1}, {"metric": "gradient_norm", "threshold": 3.0})
    assert kill_point(own, reference, rule(*criteria, join="any")) is not None
    assert kill_point(own, reference, rule(*criteria, join="all")) is None
    exploding = curve(*[4.5] * 8, norms=[4.0] * 8)
    kill = kill_point(exploding, reference, rule(*criteria, join="all"))
    assert kill is not None
    assert "gradient norm 4 against 1, limit ×3" in kill.reason
    unknown = curve(*[4.5] * 8, norms=[None] * 8)
    assert kill_point(unknown, reference, rule(*criteria, join="all")) is None
    assert kill_point(unknown, reference, rule(*criteria, join="any")) is not None


def test_a_loss_too_large_for_a_perplexity_is_worse_and_no_error() -> None:
    assert kill_point(curve(*[1e4] * 8), curve(*[4.0] * 8), rule()) is not None
    assert kill_point(curve(*[4.0] * 8), curve(*[1e4] * 8), rule()) is None


def test_a_gradient_ratio_that_would_kill_the_baseline_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="must be > 1, got 1"):
        KillCriterion(metric="gradient_norm", threshold=1.0)


losses = st.one_of(st.none(), st.floats(2.0, 8.0), st.sampled_from([4.0, 4.5]))
norms = st.one_of(st.none(), st.floats(0.0, 10.0))
curves = st.lists(st.tuples(losses, norms), max_size=16).map(
    lambda rows: curve(*(row[0] for row in rows), norms=[row[1] for row in rows])
)
criteria = st.one_of(
    st.builds(lambda t: {"metric": "perplexity", "threshold": t}, st.floats(0.1, 50)),
    st.builds(lambda t: {"metric": "loss", "threshold": t}, st.floats(0.001, 1)),
    st.builds(lambda n, s: {"metric": "loss", "sigmas": n, "sigma": s}, st.floats(1, 5), st.floats(0.001, 0.1)),
    st.builds(lambda t: {"metric": "gradient_norm", "threshold": t}, st.floats(1.1, 5)),
)
rules = st.builds(
    lambda chosen, join, span, least, looks: rule(
        *chosen, join=join, span_tokens=span * STEP, min_tokens=least * STEP, looks=looks
    ),
    st.lists(criteria, min_size=1, max_size=3),
    st.sampled_from(["any", "all"]),
    st.integers(1, 6),
    st.integers(0, 8),
    st.one_of(st.none(), st.lists(st.integers(1, 16).map(lambda n: n * STEP), min_size=2, max_size=8, unique=True)),
)


@settings(deadline=None)
@given(own=curves, reference=curves, chosen=rules)
def test_a_kill_depends_on_nothing_past_its_look(own: list[Point], reference: list[Point], chosen: KillRule) -> None:
    kill = kill_point(own, reference, chosen)
    if kill is None:
        return
    own_then = [point for point in own if point.tokens <= kill.tokens]
    reference_then = [point for point in reference if point.tokens <= kill.tokens]
    assert kill_point(own_then, reference_then, chosen) == kill
    # other futures, the same kill
    worse = [Point(step=99, tokens=kill.tokens + extra * STEP, val_loss=9.0) for extra in (1, 2)]
    assert kill_point([*own_then, *worse], reference, chosen) == kill
    assert kill_point(own, [*reference_then, *worse], chosen) == kill


@settings(deadline=None)
@given(own=curves, reference=curves, chosen=rules, seed=st.integers(0, 10**6))
def test_the_order_of_arrival_never_changes_the_kill(
    own: list[Point], reference: list[Point], chosen: KillRule, seed: int
) -> None:
    final = kill_point(own, reference, chosen)
    order = ["own"] * len(own) + ["reference"] * len(reference)
    random.Random(seed).shuffle(order)
    seen = {"own": 0, "reference": 0}
    first = None
    for side in order:
        seen[side] += 1
        found = kill_point(own[: seen["own"]], reference[: seen["reference"]], chosen)
        if first is None:
            first = found
        assert first == found  # once made, a decision stays
    assert first == final


@given(own=curves, chosen=rules)
def test_the_baseline_is_never_killed_by_itself(own: list[Point], chosen: KillRule) -> None:
    assert kill_point(own, own, chosen) is None


@settings(deadline=None)
@given(arm=st.lists(curves, min_size=2, max_size=3), reference=curves, chosen=rules, cut=st.integers(0, 16))
def test_an_arms_mean_gives_the_same_kill_when_seeds_lag(
    arm: list[list[Point]], reference: list[Point], chosen: KillRule, cut: int
) -> None:
    final = kill_point(mean_curve(arm), reference, chosen)
    early = kill_point(mean_curve([arm[0], *(lagging[:cut] for lagging in arm[1:])]), reference, chosen)
    assert early in (None, final)


def stops(**fields: Any) -> StopRules:
    return StopRules.model_validate(fields)


def test_a_loss_that_is_not_finite_always_stops_and_is_called_diverged() -> None:
    for bad in (None, math.inf, math.nan):
        stop = first_stop(curve(4.0, bad, 3.0), None, stops())
        assert stop is not None
        assert (stop.rule, stop.tokens, stop.status) == ("non_finite", 2 * STEP, Status.DIVERGED)


def test_patience_counts_evaluations_without_improvement_in_a_row() -> None:
    rules = stops(patience={"evaluations": 3})
    assert first_stop(curve(4.0, 4.1, 4.1, 3.9, 4.0, 4.0), None, rules) is None
    stop = first_stop(curve(4.0, 4.1, 4.0, 4.2, 3.0), None, rules)
    assert stop is not None
    assert (stop.rule, stop.tokens, stop.status) == ("patience", 4 * STEP, Status.KILLED)


def test_patience_wants_more_than_its_least_improvement_and_waits_for_its_least_tokens() -> None:
    slow = curve(4.0, 3.995, 3.99, 3.985)
    assert first_stop(slow, None, stops(patience={"evaluations": 2})) is None
    stop = first_stop(slow, None, stops(patience={"evaluations": 2, "min_delta": 0.02}))
    assert stop is not None
    assert stop.tokens == 3 * STEP
    late = first_stop(slow, None, stops(patience={"evaluations": 2, "min_delta": 0.02, "min_tokens": 4 * STEP}))
    assert late is not None
    assert late.tokens == 4 * STEP


def test_regression_compares_with_the_runs_own_best() -> None:
    rules = stops(regression={"threshold": 0.5})
    assert first_stop(curve(4.0, 3.0, 3.4), None, rules) is None
    stop = first_stop(curve(4.0, 3.0, 3.5), None, rules)
    assert stop is not None
    assert (stop.rule, stop.tokens) == ("regression", 3 * STEP)
    assert "above the run's own best 3.0000" in stop.reason
    assert first_stop(curve(4.0, 3.0, 3.5), None, stops(regression={"threshold": 0.5, "min_tokens": 4 * STEP})) is None


def test_the_earliest_rule_wins_and_the_kill_rule_waits_for_a_reference() -> None:
    rules = stops(kill=rule().model_dump(), patience={"evaluations": 8})
    own = of_perplexity(*[101.0] * 12)
    patience = first_stop(own, None, rules)
    assert patience is not None
    assert (patience.rule, patience.tokens) == ("patience", 9 * STEP)
    kill = first_stop(own, REFERENCE, rules)
    assert kill is not None
    assert (kill.rule, kill.tokens, kill.status) == ("kill", 5 * STEP, Status.KILLED)


def run(**fields: Any) -> TrainConfig:
    return load_config(
        {
            "model": {"vocab_size": 100, "d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 16},
            "data": {"sequence_length": 100},
            "optimizer": {"learning_rate": 1e-3},
            "batch": {"sequences": 10},
            "max_steps": 5000,
            "evaluation": {"every_steps": 500},
        }
        | fields
    )


def places(config: TrainConfig) -> list[str]:
    return [problem.where for problem in impossible_rules(config)]


def kill_of(**fields: Any) -> dict[str, Any]:
    return {"kill": rule(**fields).model_dump()}


def test_the_studys_own_rules_are_possible() -> None:
    assert (
        impossible_rules(run(stop=kill_of() | {"patience": {"evaluations": 5}, "regression": {"threshold": 1}})) == []
    )


@pytest.mark.parametrize(
    ("fields", "where", "what"),
    [
        ({"evaluation": {"every_steps": 5001}}, "evaluation.every_steps", "at most the run's 5000 steps, got 5001"),
        ({"checkpoint": {"every_steps": 6000}}, "checkpoint.every_steps", "at most the run's 5000 steps, got 6000"),
        ({"stop": kill_of(min_tokens=5_000_001)}, "stop.kill.min_tokens", "the last look, 5000000 tokens"),
        ({"stop": kill_of(span_tokens=4_500_001)}, "stop.kill.span_tokens", "at most 4500000"),
        ({"stop": kill_of(looks=[1_000_000, 2_250_000])}, "stop.kill.looks", "nearest to the first is 2000000"),
        ({"stop": kill_of(looks=[1_000_000, 6_000_000])}, "stop.kill.looks", "up to 5000000"),
        ({"stop": kill_of(looks=[])}, "stop.kill.looks", "got none"),
        ({"stop": kill_of(looks=[1_000_000])}, "stop.kill.span_tokens", "at most 0"),
        ({"stop": {"patience": {"evaluations": 10}}}, "stop.patience.evaluations", "the run's 10 evaluations, got 10"),
        (
            {"stop": {"patience": {"evaluations": 2, "min_tokens": 5_000_001}}},
            "stop.patience.min_tokens",
            "at most 5000000 tokens",
        ),
        (
            {"stop": {"regression": {"threshold": 1, "min_tokens": 5_000_001}}},
            "stop.regression.min_tokens",
            "at most 5000000 tokens",
        ),
        (
            {"stop": {"regression": {"threshold": 1}}, "evaluation": {"every_steps": 5000}},
            "stop.regression",
            "at least 2 evaluations",
        ),
    ],
)
def test_what_can_never_occur_is_named(fields: dict[str, Any], where: str, what: str) -> None:
    problems = impossible_rules(run(**fields))
    assert [problem.where for problem in problems] == [where]
    assert what in problems[0].what


def test_every_impossible_rule_is_reported_at_once() -> None:
    config = run(
        evaluation={"every_steps": 9000},
        checkpoint={"every_steps": 9000},
        stop=kill_of(span_tokens=9_000_000, min_tokens=9_000_000) | {"patience": {"evaluations": 50}},
    )
    assert len(places(config)) == 5


def _can_fire(config: TrainConfig) -> bool:
    """Whether the worst possible run would be killed."""
    count = config.steps // config.evaluation.every_steps
    every = config.evaluation.every_steps * config.tokens_per_step
    tokens = sorted({*(number * every for number in range(1, count + 1)), config.tokens})
    own = [Point(step=0, tokens=value, val_loss=9.0) for value in tokens]
    best = [Point(step=0, tokens=value, val_loss=1.0) for value in tokens]
    assert config.stop.kill is not None
    return kill_point(own, best, config.stop.kill) is not None


@settings(deadline=None)
@given(
    every=st.integers(1, 60),
    steps=st.integers(60, 200),
    span=st.integers(1, 250),
    least=st.integers(0, 250),
    looks=st.one_of(st.none(), st.lists(st.integers(1, 5), min_size=1, max_size=4)),
)
def test_a_kill_rule_is_called_impossible_exactly_when_the_worst_run_survives_it(
    every: int, steps: int, span: int, least: int, looks: list[int] | None
) -> None:
    config = run(
        max_steps=steps,
        evaluation={"every_steps": every},
        checkpoint={"every_steps": 1},
        stop=kill_of(
            span_tokens=span * 1000,
            min_tokens=least * 1000,
            looks=looks and [min(number * every, steps // every * every) * 1000 for number in looks],
        ),
    )
    assert (impossible_rules(config) == []) == _can_fire(config)


def test_the_declared_threshold_is_explained_in_nats_beside_the_noise() -> None:
    (sentence,) = meaning_of(rule(), math.log(300))
    assert sentence.startswith("0.5 PPL worse is 0.0017 nats at PPL 300; at its least that is 0.9 × the noise")
    (examples,) = meaning_of(rule(), None)
    assert "0.0005 nats at PPL 1000, 0.0017 nats at PPL 300" in examples


def test_thresholds_in_nats_sigmas_and_ratios_are_explained_too() -> None:
    chosen = rule(
        {"metric": "loss", "threshold": 0.1},
        {"metric": "loss", "sigmas": 2.0, "sigma": 0.002},
        {"metric": "gradient_norm", "threshold": 3.0},
    )
    nats, sigmas, ratio = meaning_of(chosen, math.log(100))
    assert nats == "0.1 nats worse is 11 PPL at PPL 100"
    assert "0.004 nats worse (2 × σ 0.002) is 0.4 PPL at PPL 100" in sigmas
    assert "σ 0.002, as given" in sigmas
    assert ratio == "a gradient norm 3 × the reference's or more"


def test_a_criterion_without_a_threshold_is_refused() -> None:
    with pytest.raises(ConfigError, match="give either threshold, or sigmas and sigma together"):
        run(stop={"kill": {"criteria": [{"metric": "loss"}], "span_tokens": 1, "min_tokens": 0}})
