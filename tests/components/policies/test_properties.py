"""What holds for every policy: the order of trials means nothing, a worse arm more takes nothing away, and speed."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podium.components.policies.decide import decide
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.verdict import MoreTrials, StageResults, TrialOutcome, VariantRef, Verdict
from podium.trainer.trial.result import Status

STUDY = """\
name: properties
question: Does it hold?
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
stages:
  only:
    budget: {steps: 8}
    seeds: 3
    proof: true
    stop: {target: {loss: 5.0}}
    promotion: {policy: always}
  next:
    budget: {steps: 8}
    promotion: {policy: always}
"""
POLICIES: dict[str, dict[str, Any]] = {
    "within_margin": {"margin": 0.01, "alpha": 0.1},
    "beats_baseline": {"alpha": 0.05, "most": 2},
    "paired": {"policy": "beats_baseline", "paired": True},
    "reaches_target": {"target": 3.0},
    "best_mean": {},
    "fastest_to_target": {},
    "refine_region": {"trials": 12},
    "if_affordable": {},
}
SEEDS = [42, 43, 44]


def study_of(name: str) -> Study:
    promotion = {"policy": name} | POLICIES[name]
    text = STUDY.replace("policy: always", ", ".join(f"{k}: {v}" for k, v in promotion.items()), 1)
    return load_study(text.replace("True", "true"))


STUDIES = {name: study_of(name) for name in POLICIES}
finite = st.floats(2.9, 3.1, allow_nan=False)
figures = st.one_of(finite, st.none(), st.just(math.nan), st.sampled_from(["broken", "diverged", "killed"]))


def outcome(name: str, seed: int, figure: float | str | None) -> TrialOutcome:
    status = Status(figure) if isinstance(figure, str) else Status.COMPLETED
    value = figure if isinstance(figure, float) else None
    seconds = 100 * value if value is not None and math.isfinite(value) and value < 3.0 else None
    return TrialOutcome(
        variant=name, seed=seed, fingerprint=f"{name}-{seed}", status=status, value=value, tokenizer="one",
        time_to_target_seconds=seconds, training_seconds=None if isinstance(figure, str) else 310.0, device="H100",
    )  # fmt: skip


def results_of(table: dict[str, list[Any]]) -> StageResults:
    outcomes = [
        outcome(name, seed, figure)
        for name, row in table.items() for seed, figure in zip(SEEDS, row, strict=False) if figure is not None
    ]  # fmt: skip
    refs = [
        VariantRef(name=name, overrides={"optimizer.learning_rate": 1e-3 * (i + 1)}) for i, name in enumerate(table)
    ]
    return StageResults(stage="only", variants=refs, seeds=SEEDS, outcomes=outcomes)


@st.composite
def tables(draw: Any, values: Any = figures) -> dict[str, list[Any]]:
    names = ["baseline", *(f"v{i}" for i in range(draw(st.integers(0, 4))))]
    return {name: draw(st.lists(values, min_size=3, max_size=3)) for name in names}


@pytest.mark.parametrize("name", POLICIES)
@given(table=tables(), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_no_order_of_trials_or_variants_changes_an_answer(name: str, table: dict[str, list[Any]], seed: int) -> None:
    results = results_of(table)
    mixed = random.Random(seed)
    outcomes, refs = list(results.outcomes), list(results.variants)
    mixed.shuffle(outcomes)
    mixed.shuffle(refs)
    first = decide(STUDIES[name], results)
    again = decide(STUDIES[name], results.model_copy(update={"outcomes": outcomes, "variants": refs}))
    assert first.model_dump(exclude={"results"}) == again.model_dump(exclude={"results"})


@pytest.mark.parametrize("name", POLICIES)
@given(table=tables())
@settings(max_examples=40, deadline=None)
def test_an_answer_is_whole_and_only_finite_figures_win(name: str, table: dict[str, list[Any]]) -> None:
    verdict = decide(STUDIES[name], results_of(table))
    assert isinstance(verdict, Verdict)
    assert verdict.reason.startswith((f"{verdict.decision}", "await"))
    assert sum(verdict.counts.values()) == 3 * len(table)
    if verdict.winner is not None:
        row = next(row for row in verdict.ranking if row.variant == verdict.winner)
        assert row.rank is not None
        assert row.mean is not None
        assert math.isfinite(row.mean)
    if verdict.proven:
        values = table[verdict.winner or ""]
        assert all(isinstance(value, float) and math.isfinite(value) for value in values)
        p = verdict.test["p"]
        assert p < verdict.test["alpha"]
    # the JSON holds all that the decision needs
    assert decide(STUDIES[name], StageResults.model_validate_json(verdict.results.model_dump_json())) == verdict or any(  # type: ignore[union-attr]
        isinstance(v, float) and math.isnan(v) for row in table.values() for v in row
    )


def p_of(verdict: Verdict, name: str) -> float:
    found = next(row.p for row in verdict.ranking if row.variant == name)
    return 1.0 if found is None else found


@pytest.mark.parametrize("name", ["within_margin", "beats_baseline", "paired", "reaches_target", "best_mean",
                                  "fastest_to_target"])  # fmt: skip
@given(table=tables(finite), worse=st.lists(st.floats(3.5, 3.9), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_a_worse_arm_more_never_puts_another_in_the_winners_place(
    name: str, table: dict[str, list[Any]], worse: list[float]
) -> None:
    """It may cost the proof: through the variance that is pooled and the number of comparisons, both of which the
    verdict states."""
    if name == "reaches_target" and set(table) == {"baseline"}:
        return  # a baseline is tested only where it is alone
    before = decide(STUDIES[name], results_of(table))
    after = decide(STUDIES[name], results_of(table | {"worse": worse}))
    assert isinstance(before, Verdict)
    assert isinstance(after, Verdict)
    if before.winner is None:
        assert name == "within_margin" or after.winner in (None, "worse") or after.test.get("p") is not None
        return
    if after.winner != before.winner:
        assert name in ("within_margin", "beats_baseline", "paired", "reaches_target", "best_mean")
        stated = ("pooled_sd", "comparisons")
        assert any(after.test.get(key) != before.test.get(key) for key in stated)
        if name != "within_margin":  # the one before is no longer shown, and who takes its place was shown before
            alpha = before.test["alpha"]
            assert p_of(after, before.winner) >= alpha
            assert after.winner is None or p_of(before, after.winner) < alpha
    assert after.winner != "worse"


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("table", "stopped"),
    [
        ({}, "not enough results"),
        ({"baseline": [None, None, None]}, ""),
        ({"baseline": [math.nan] * 3, "v0": [math.nan] * 3}, ""),
        ({"v0": [2.9, 2.91, 2.92]}, None),
        ({"baseline": [2.95, 2.96, 2.97], "v0": [2.95, 2.96, 2.97]}, None),
    ],
    ids=["zero arms", "no result", "only NaN", "one arm", "a tie"],
)
def test_the_edges_give_a_verdict(name: str, table: dict[str, list[Any]], stopped: str | None) -> None:
    verdict = decide(STUDIES[name], results_of(table))
    assert isinstance(verdict, Verdict)
    if stopped is not None and not (name == "fastest_to_target" and "NaN" in str(table).replace("nan", "NaN")):
        assert verdict.decision == "stop"
        assert stopped in verdict.reason
    if len(table) == 2 and stopped is None:  # a tie is never a proof, and the baseline keeps its place
        assert not verdict.proven or name == "reaches_target"
    if len(table) == 1 and stopped is None and name == "reaches_target":
        assert (verdict.winner, verdict.proven) == ("v0", True)


@pytest.mark.parametrize("name", POLICIES)
def test_a_verdict_over_ten_thousand_trials_is_not_quadratic_in_them(name: str) -> None:
    seeds = [42, 43, 44, 45, 46]
    noise = np.random.default_rng(0).normal(3.0, 0.01, (2000, 5))
    names = ["baseline", *(f"v{i}" for i in range(1999))]
    results = StageResults(
        stage="only",
        variants=[
            VariantRef(name=n, overrides={"optimizer.learning_rate": 1e-6 * (i + 1)}) for i, n in enumerate(names)
        ],
        seeds=seeds,
        outcomes=[
            outcome(n, s, float(v)) for n, r in zip(names, noise, strict=True) for s, v in zip(seeds, r, strict=True)
        ],
    )
    assert len(results.outcomes) == 10_000
    began = time.process_time()
    assert isinstance(decide(STUDIES[name], results), Verdict | MoreTrials)
    assert time.process_time() - began < 15  # tests/benchmarks/verdict_scale.py measures it
