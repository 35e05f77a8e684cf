from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podium.components.policies.decide import decide
from podium.components.study.schema import Recorded, Study
from podium.components.study.verdict import StageResults, TrialOutcome, VariantRef, Verdict, to_markdown
from podium.trainer.trial.result import Status

Make = Callable[..., StageResults]
RANKING = {"baseline": [5.0], "emb25": [4.9], "emb45": [5.2], "glu2x": [5.1], "glu3x": [4.8], "glu4x": [5.3]}
NOISE = [-0.02, 0.0, 0.02]


def verdict_of(study: Study, results: StageResults) -> Verdict:
    verdict = decide(study, results)
    assert isinstance(verdict, Verdict)
    return verdict


def with_stage(study: Study, stage: str, **changes: Any) -> Study:
    stages = study.stages | {stage: study.stages[stage].model_copy(update=changes)}
    return study.model_copy(update={"stages": stages})


def around(mean: float) -> list[float]:
    return [mean + noise for noise in NOISE]


# ---- top_per_axis ----


def test_the_top_of_each_axis_both_together_and_the_baseline_go_on(allocation: Study, stage_of: Make) -> None:
    verdict = verdict_of(allocation, stage_of(allocation, "ranking", RANKING))
    assert verdict.decision == "promote"
    assert verdict.tops == {"embedding": "emb25", "glu": "glu3x"}
    assert [ref.name for ref in verdict.promoted] == ["baseline", "glu3x", "emb25", "emb25-glu3x"]
    assert verdict.promoted[-1].overrides == {
        "model.allocation.embedding_share": 0.25,
        "model.allocation.glu_expansion": 3.0,
    }
    assert verdict.promoted[-1].axis_values == {"embedding": 0.25, "glu": 3.0}
    assert set(verdict.not_chosen) == {"emb45", "glu2x", "glu4x"}
    assert not verdict.proven
    assert verdict.claim == "none"


@pytest.mark.parametrize(
    ("changed", "finalists"),
    [
        ({"glu3x": [5.05]}, ["baseline", "emb25"]),
        ({"emb25": [5.05]}, ["baseline", "glu3x"]),
        ({"glu3x": [5.05], "emb25": [5.05]}, ["baseline"]),
        ({"glu3x": [5.0], "emb25": [5.0]}, ["baseline"]),
    ],
)
def test_where_the_baseline_has_the_best_value_the_finalists_collapse_and_the_verdict_says_so(
    changed: dict[str, list[float]], finalists: list[str], allocation: Study, stage_of: Make
) -> None:
    verdict = verdict_of(allocation, stage_of(allocation, "ranking", RANKING | changed))
    assert [ref.name for ref in verdict.promoted] == finalists
    assert "collapse" in verdict.reason
    assert any("collapse" in note for note in verdict.notes)


def test_a_killed_arm_is_not_promoted_and_comes_after_the_others(allocation: Study, stage_of: Make) -> None:
    figures = RANKING | {"glu3x": [Status.KILLED]}
    verdict = verdict_of(allocation, stage_of(allocation, "ranking", figures))
    assert verdict.tops["glu"] == "baseline"
    assert verdict.ranking[-1].variant == "glu3x"
    assert verdict.ranking[-1].rank is None
    assert verdict.not_chosen["glu3x"] == "seed 42 killed"


def test_a_combination_that_no_model_has_is_left_out_with_its_reason(allocation: Study, stage_of: Make) -> None:
    # 300k parameters: 45 % at 2.66x and 35 % at 4x have a solution, 45 % at 4x has none
    allocation_300k = {"parameters": 300_000, "embedding_share": 0.35, "glu_expansion": 2.66}
    study = allocation.model_copy(update={"config": allocation.config | {"model": {"allocation": allocation_300k}}})
    verdict = verdict_of(study, stage_of(study, "ranking", RANKING | {"emb45": [4.7], "glu4x": [4.6]}))
    assert [ref.name for ref in verdict.promoted] == ["baseline", "glu4x", "emb45"]
    assert any(note.startswith("the tops can't be combined: no model of 300k parameters") for note in verdict.notes)


# ---- best_mean ----


def test_the_best_mean_is_proven_when_it_beats_the_baseline(allocation: Study, stage_of: Make) -> None:
    figures = {"baseline": around(5.0), "emb25": around(4.9), "glu3x": around(4.95)}
    verdict = verdict_of(allocation, stage_of(allocation, "finals", figures))
    assert verdict.winner == "emb25"
    assert verdict.proven
    assert verdict.claim == "proven"
    assert [ref.name for ref in verdict.promoted] == ["emb25"]
    # by hand: SD 0.02 in each arm, so t = 0.1 / (0.02 · sqrt(2/3))
    assert verdict.test["pooled_sd"] == pytest.approx(0.02)
    assert verdict.test["degrees_of_freedom"] == 6
    assert verdict.test["statistic"] == pytest.approx(0.1 / (0.02 * math.sqrt(2 / 3)))
    assert verdict.ranking[0].difference == pytest.approx(-0.1)
    assert verdict.ranking[0].interval is not None
    assert verdict.ranking[0].interval[1] < 0


def test_a_small_difference_is_a_candidate(allocation: Study, stage_of: Make) -> None:
    figures = {"baseline": around(5.0), "emb25": around(4.99)}
    verdict = verdict_of(allocation, stage_of(allocation, "finals", figures))
    assert (verdict.winner, verdict.proven, verdict.claim) == ("emb25", False, "candidate")
    assert "is not under alpha" in verdict.reason


def test_the_baseline_as_winner_is_a_candidate_and_never_proven(allocation: Study, stage_of: Make) -> None:
    figures = {"baseline": around(4.0), "emb25": around(5.0)}
    verdict = verdict_of(allocation, stage_of(allocation, "finals", figures))
    assert (verdict.decision, verdict.winner, verdict.proven, verdict.claim) == (
        "promote",
        "baseline",
        False,
        "candidate",
    )
    assert "nothing beat the baseline" in verdict.notes


def test_one_seed_never_proves_however_large_the_difference(allocation: Study, stage_of: Make) -> None:
    study = with_stage(allocation, "finals", seeds=1, min_seeds=1)
    verdict = verdict_of(study, stage_of(study, "finals", {"baseline": [9.0], "emb25": [1.0], "glu3x": [5.0]}))
    assert (verdict.winner, verdict.proven) == ("emb25", False)
    assert "one seed never proves" in verdict.reason


def test_no_variance_never_proves(allocation: Study, stage_of: Make) -> None:
    verdict = verdict_of(allocation, stage_of(allocation, "finals", {"baseline": [5.0] * 3, "emb25": [4.0] * 3}))
    assert not verdict.proven
    assert "no variance" in verdict.reason


def test_seeds_that_give_identical_values_prove_nothing_whatever_the_values(allocation: Study, stage_of: Make) -> None:
    draw = random.Random(3)  # means of equal values are often one ulp off, which once was proven at p = 1e-45
    for n in (2, 3, 5, 6, 7):
        study = with_stage(allocation, "finals", seeds=n, min_seeds=n)
        for _ in range(40):
            values = {name: [draw.gauss(5.0, 0.1)] * n for name in ("baseline", "emb25", "glu3x")}
            assert not verdict_of(study, stage_of(study, "finals", values)).proven


def test_a_stage_that_is_no_proof_or_reuses_seeds_or_results_never_proves(
    allocation: Study, stage_of: Make, outcome: Callable[..., TrialOutcome]
) -> None:
    figures = {"baseline": around(5.0), "emb25": around(4.0)}
    screening = with_stage(allocation, "finals", proof=False)
    assert "not a proof" in verdict_of(screening, stage_of(screening, "finals", figures)).reason
    ranking = verdict_of(allocation, stage_of(allocation, "ranking", RANKING))
    assert ranking.results is not None
    same = ranking.model_copy(update={"results": ranking.results.model_copy(update={"seeds": [52]})})
    reused = verdict_of(allocation, stage_of(allocation, "finals", figures, previous=[same]))
    assert (reused.proven, reused.claim) == (False, "exploratory")
    results = stage_of(allocation, "finals", figures, previous=[ranking])
    assert verdict_of(allocation, results).proven
    taken = results.model_copy(
        update={"outcomes": [results.outcomes[0].model_copy(update={"reused_from": "other"}), *results.outcomes[1:]]}
    )
    assert not verdict_of(allocation, taken).proven


def test_a_near_tie_goes_to_the_smaller_spread_and_the_verdict_says_so(allocation: Study, stage_of: Make) -> None:
    promotion = allocation.stages["finals"].promotion.model_copy(update={"near_tie": 0.01})
    study = with_stage(allocation, "finals", promotion=promotion)
    figures = {"baseline": around(5.0), "emb25": [4.0, 4.9, 5.0], "glu3x": [4.63, 4.64, 4.65]}
    verdict = verdict_of(study, stage_of(study, "finals", figures))
    assert verdict.winner == "glu3x"
    assert verdict.notes[0].startswith("near tie: glu3x is 0.0067 behind emb25")
    assert "within the near tie" in verdict.not_chosen["emb25"]
    far = with_stage(allocation, "finals", promotion=promotion.model_copy(update={"near_tie": 0.001}))
    assert verdict_of(far, stage_of(far, "finals", figures)).winner == "emb25"


def test_a_recorded_baseline_is_described_and_proves_nothing(allocation: Study, stage_of: Make) -> None:
    baseline = allocation.baseline.model_copy(
        update={"recorded": {"finals": Recorded(mean=5.0, source="earlier work")}}
    )
    study = allocation.model_copy(update={"baseline": baseline})
    verdict = verdict_of(study, stage_of(study, "finals", {"emb25": around(4.0)}))
    assert (verdict.winner, verdict.proven) == ("emb25", False)
    assert verdict.ranking[0].difference == pytest.approx(-1.0)
    assert verdict.ranking[0].p is None
    assert "recorded elsewhere" in verdict.reason


def test_a_middle_stage_takes_the_baseline_along(allocation: Study, stage_of: Make) -> None:
    stages = {"finals": allocation.stages["finals"], "last": allocation.stages["finals"]}
    study = allocation.model_copy(update={"stages": stages})
    verdict = verdict_of(study, stage_of(study, "finals", {"baseline": around(5.0), "emb25": around(4.0)}))
    assert [ref.name for ref in verdict.promoted] == ["emb25", "baseline"]


# ---- guards ----


@pytest.mark.parametrize("end", [Status.DIVERGED, Status.BROKEN, Status.OUT_OF_MEMORY, float("nan"), None], ids=str)
def test_without_a_figure_for_the_baseline_the_stage_stops(end: Any, allocation: Study, stage_of: Make) -> None:
    verdict = verdict_of(allocation, stage_of(allocation, "ranking", RANKING | {"baseline": [end]}))
    assert verdict.decision == "stop"
    assert verdict.reason.startswith("stop: no baseline")
    assert verdict.promoted == []


def test_a_ranking_by_axis_without_its_baseline_stops(allocation: Study, stage_of: Make) -> None:
    verdict = verdict_of(allocation, stage_of(allocation, "ranking", {"emb25": [4.0]}))
    assert verdict.reason.startswith("stop: no baseline")


def test_too_many_broken_trials_stop_and_an_allowed_one_does_not(allocation: Study, stage_of: Make) -> None:
    one = RANKING | {"glu4x": [Status.BROKEN]}
    assert verdict_of(allocation, stage_of(allocation, "ranking", one)).decision == "promote"
    two = one | {"glu2x": [Status.BROKEN]}
    verdict = verdict_of(allocation, stage_of(allocation, "ranking", two))
    assert verdict.reason == "stop: not enough results: 2 broken trials, the stage allows 1"


def test_an_arm_with_too_few_seeds_is_not_ranked_and_all_such_arms_stop_the_stage(
    allocation: Study, stage_of: Make
) -> None:
    figures = {"baseline": around(5.0), "emb25": [1.0, 1.0, None], "glu3x": around(4.9)}
    verdict = verdict_of(allocation, stage_of(allocation, "finals", figures))
    assert verdict.winner == "glu3x"
    assert verdict.not_chosen["emb25"] == "2 of at least 3 seeds have a value (seed 54 missing)"
    recorded = allocation.baseline.model_copy(update={"recorded": {"finals": Recorded(mean=5.0, source="x")}})
    alone = allocation.model_copy(update={"baseline": recorded})
    stopped = verdict_of(alone, stage_of(alone, "finals", {"emb25": [1.0, 1.0, None]}))
    assert stopped.reason.startswith("stop: not enough results: none of 1 arms")


def test_an_arm_is_never_ranked_by_the_seeds_that_survived_its_kills(allocation: Study, stage_of: Make) -> None:
    study = with_stage(allocation, "finals", min_seeds=1)
    figures = {"baseline": around(5.0), "emb25": [1.0, 1.0, Status.KILLED]}
    assert verdict_of(study, stage_of(study, "finals", figures)).winner == "baseline"


def test_losses_of_different_tokenizers_are_not_compared_but_bits_per_byte_are(
    allocation: Study, stage_of: Make
) -> None:
    results = stage_of(allocation, "ranking", RANKING)
    other = [results.outcomes[0].model_copy(update={"tokenizer": "two"}), *results.outcomes[1:]]
    mixed = results.model_copy(update={"outcomes": other})
    assert verdict_of(allocation, mixed).reason.startswith("stop: not comparable")
    promotion = allocation.stages["ranking"].promotion.model_copy(update={"metric": "final_bits_per_byte"})
    assert verdict_of(with_stage(allocation, "ranking", promotion=promotion), mixed).decision == "promote"


def test_required_approval_waits_with_everything_decided(allocation: Study, stage_of: Make) -> None:
    study = with_stage(allocation, "ranking", approval="required")
    verdict = verdict_of(study, stage_of(study, "ranking", RANKING))
    assert verdict.decision == "await"
    assert len(verdict.promoted) == 4


def test_always_lets_everything_on_that_has_a_figure(allocation: Study, stage_of: Make) -> None:
    from podium.components.policies.unranked import Always

    study = with_stage(allocation, "ranking", promotion=Always())
    verdict = verdict_of(study, stage_of(study, "ranking", RANKING | {"glu4x": [Status.KILLED]}))
    assert [ref.name for ref in verdict.promoted] == ["glu3x", "emb25", "baseline", "glu2x", "emb45"]


def test_zero_arms_stop_and_one_arm_is_its_own_winner(allocation: Study, stage_of: Make) -> None:
    empty = StageResults(stage="finals", variants=[], seeds=[52, 53, 54], outcomes=[])
    assert verdict_of(allocation, empty).reason.startswith("stop: not enough results: none of 0 arms")
    alone = verdict_of(allocation, stage_of(allocation, "finals", {"baseline": around(5.0)}))
    assert (alone.winner, alone.proven, alone.claim) == ("baseline", False, "candidate")
    lonely = verdict_of(allocation, stage_of(allocation, "finals", {"emb25": around(5.0)}))
    assert (lonely.winner, lonely.proven) == ("emb25", False)
    assert "no baseline in this stage" in lonely.reason


# ---- properties ----

figure = st.one_of(
    st.floats(1.0, 9.0),
    st.sampled_from([Status.KILLED, Status.DIVERGED, Status.BROKEN, Status.OUT_OF_MEMORY, float("nan"), math.inf]),
    st.none(),
)
NAMES = ["baseline", "emb25", "emb45", "glu2x", "glu3x", "glu4x"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, dict[str, list[Any]]]:
    stage = draw(st.sampled_from(["ranking", "finals"]))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
    seeds = 1 if stage == "ranking" else 3
    return stage, {name: draw(st.lists(figure, min_size=seeds, max_size=seeds)) for name in names}


@given(table=tables(), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=150)
def test_no_order_of_trials_or_variants_changes_a_verdict(
    table: tuple[str, dict[str, list[Any]]], seed: int, allocation: Study, stage_of: Make
) -> None:
    study = with_stage(with_stage(allocation, "ranking", max_broken=9), "finals", max_broken=9, min_seeds=2)
    results = stage_of(study, *table)
    rng = random.Random(seed)
    shuffled = results.model_copy(
        update={
            "outcomes": rng.sample(results.outcomes, len(results.outcomes)),
            "variants": rng.sample(results.variants, len(results.variants)),
        }
    )
    one, other = verdict_of(study, results), verdict_of(study, shuffled)
    assert one.model_dump(exclude={"results"}) == other.model_dump(exclude={"results"})


@given(table=tables())
@settings(deadline=None, max_examples=150)
def test_only_an_arm_with_enough_finite_values_wins_and_every_verdict_is_whole(
    table: tuple[str, dict[str, list[Any]]], allocation: Study, stage_of: Make
) -> None:
    study = with_stage(with_stage(allocation, "ranking", max_broken=9), "finals", max_broken=9, min_seeds=2)
    stage, figures = table
    verdict = verdict_of(study, stage_of(study, stage, figures))
    able = {
        name
        for name, row in figures.items()
        if sum(isinstance(f, float) and math.isfinite(f) for f in row) >= study.stages[stage].min_seeds
        and not {Status.KILLED, Status.DIVERGED, Status.OUT_OF_MEMORY} & {f for f in row if isinstance(f, Status)}
    }
    if verdict.winner is not None:
        assert verdict.winner in able
        ranks = [row.rank for row in verdict.ranking if row.rank is not None]
        assert ranks == list(range(1, len(able) + 1))
        assert {row.variant for row in verdict.ranking if row.rank} == able
    else:
        assert verdict.decision == "stop"
    assert not (verdict.proven and stage == "ranking")
    assert sum(verdict.counts.values()) == sum(len(row) for row in figures.values())
    assert {row.variant for row in verdict.ranking} == set(figures)
    again = Verdict.model_validate_json(verdict.model_dump_json())
    assert again.results is not None
    recomputed = verdict_of(study, again.results)
    assert recomputed.model_dump_json(exclude={"results"}) == verdict.model_dump_json(exclude={"results"})
    assert verdict.decision in to_markdown(verdict)


@given(worse=st.floats(5.5, 9.0), mean=st.floats(4.0, 5.4))
@settings(deadline=None, max_examples=50)
def test_one_worse_arm_more_never_takes_the_win_away(
    worse: float, mean: float, allocation: Study, stage_of: Make
) -> None:
    figures = {"baseline": around(5.0), "emb25": around(mean)}
    before = verdict_of(allocation, stage_of(allocation, "finals", figures))
    after = verdict_of(allocation, stage_of(allocation, "finals", figures | {"emb45": around(worse)}))
    assert after.winner == before.winner


def test_a_verdict_over_ten_thousand_trials_is_not_quadratic_in_them(
    allocation: Study, outcome: Callable[..., TrialOutcome]
) -> None:
    rng = random.Random(0)
    refs = [VariantRef(name="baseline"), *(VariantRef(name=f"v{i:04d}") for i in range(1999))]
    seeds = [52, 53, 54, 55, 56]
    outcomes = [outcome(ref.name, seed, rng.gauss(5.0, 0.1)) for ref in refs for seed in seeds]
    results = StageResults(stage="finals", variants=refs, seeds=seeds, outcomes=outcomes)
    began = time.process_time()
    verdict = verdict_of(allocation, results)
    assert time.process_time() - began < 15  # tests/benchmarks/verdict_scale.py measures it
    assert verdict.counts == {"completed": 10_000}


# ---- in words ----


def test_the_markdown_has_the_decision_every_seed_and_who_was_not_chosen(allocation: Study, stage_of: Make) -> None:
    figures = {"baseline": around(5.0), "emb25": around(4.9), "glu3x": [4.8, Status.KILLED, None]}
    text = to_markdown(verdict_of(allocation, stage_of(allocation, "finals", figures)))
    assert text.startswith("## finals: promote\n")
    for part in [
        "4.8800",
        "4.9000",
        "4.9200",
        "53: killed",
        "54: missing",
        "seed 53 killed",
        "pooled SD 0.0200",
        "p = ",
    ]:
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_text_that_looks_like_markup_stays_text(allocation: Study, stage_of: Make) -> None:
    figures = {"baseline": around(5.0), "a|<b>": around(4.9)}
    text = to_markdown(verdict_of(allocation, stage_of(allocation, "finals", figures)))
    assert "a\\|&lt;b>" in text
    assert "<b>" not in text
