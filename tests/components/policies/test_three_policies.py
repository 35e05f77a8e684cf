from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from podium.components.policies.decide import decide
from podium.components.study.load import load_study
from podium.components.study.schema import Recorded, Study
from podium.components.study.verdict import MoreTrials, StageResults, Verdict, to_markdown
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.result import Status

STUDY = """\
name: ladder
question: Which of three changes is better?
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
  three: {overrides: {optimizer.learning_rate: 4e-3}}
stages:
  screen:
    budget: {steps: 8}
    seeds: 2
    price: {usd_per_run: 2}
    promotion: {policy: within_margin, margin: 0.005}
  confirm:
    budget: {steps: 16}
    seeds: 3
    price: {usd_per_run: 10}
    promotion: {policy: beats_baseline}
  proof:
    budget: {steps: 32}
    seeds: 5
    proof: true
    price: {usd_per_run: 20}
    promotion: {policy: reaches_target, target: 3.28}
"""

Make = Callable[..., StageResults]


@pytest.fixture(scope="module")
def ladder() -> Study:
    return load_study(STUDY)


def with_policy(study: Study, stage: str, **changes: Any) -> Study:
    declared = study.stages[stage]
    promotion = declared.promotion.model_validate(declared.promotion.model_dump() | changes)
    return study.model_copy(
        update={"stages": study.stages | {stage: declared.model_copy(update={"promotion": promotion})}}
    )


def verdict_of(study: Study, results: StageResults) -> Verdict:
    verdict = decide(study, results)
    assert isinstance(verdict, Verdict), verdict
    assert to_markdown(verdict)
    again = decide(study, StageResults.model_validate_json(verdict.results.model_dump_json()))  # type: ignore[union-attr]
    assert again == verdict
    return verdict


def names(verdict: Verdict) -> list[str]:
    return [ref.name for ref in verdict.promoted]


SCREEN = {"baseline": [3.40, 3.41], "one": [3.300, 3.310], "two": [3.304, 3.308], "three": [3.50, 3.51]}


# ---- within_margin ----


def test_everything_within_the_margin_goes_on_and_the_least_spread_is_first(ladder: Study, stage_of: Make) -> None:
    verdict = verdict_of(ladder, stage_of(ladder, "screen", SCREEN))
    assert names(verdict) == ["two", "one", "baseline"]
    assert any("smallest spread" in note for note in verdict.notes)
    assert not verdict.proven
    assert "0.2000 behind one" in verdict.not_chosen["three"]


def test_by_mean_the_leader_is_first_and_the_count_is_capped(ladder: Study, stage_of: Make) -> None:
    study = with_policy(ladder, "screen", tie_break="mean", most=1, keep_baseline=False)
    verdict = verdict_of(study, stage_of(study, "screen", SCREEN))
    assert names(verdict) == ["one"]
    assert "at most 1" in verdict.not_chosen["two"]


def test_what_the_budget_does_not_pay_does_not_go_on(ladder: Study, stage_of: Make) -> None:
    def at(usd: float) -> Verdict:
        study = ladder.model_copy(update={"budget": ladder.budget.model_copy(update={"usd": usd})})
        return verdict_of(study, stage_of(study, "screen", SCREEN, spent_usd=16.0))

    assert names(at(306)) == ["two", "one", "baseline"]  # 16 + 3 arms x 3 seeds x $10 + 2 x 5 x $20
    assert names(at(305)) == ["two", "baseline"]
    stopped = at(275)
    assert stopped.decision == "stop"
    assert "needs $276" in stopped.reason


def test_a_leading_baseline_with_nobody_near_is_a_stop(ladder: Study, stage_of: Make) -> None:
    verdict = verdict_of(ladder, stage_of(ladder, "screen", SCREEN | {"baseline": [3.0, 3.0]}))
    assert (verdict.decision, verdict.winner) == ("stop", None)
    assert "the baseline leads" in verdict.reason


def test_alpha_widens_the_margin_by_what_seeds_cannot_tell_apart(ladder: Study, stage_of: Make) -> None:
    figures = {"one": [3.30, 3.31], "two": [3.315, 3.325], "three": [3.40, 3.41]}
    narrow = with_policy(ladder, "screen", margin=0.0)
    assert names(verdict_of(narrow, stage_of(narrow, "screen", figures))) == ["one"]
    wide = with_policy(ladder, "screen", margin=0.0, alpha=0.1)
    verdict = verdict_of(wide, stage_of(wide, "screen", figures))
    # by hand: SD of each arm 0.01 / sqrt(2), three degrees of freedom
    assert verdict.test["limits"]["two"] == pytest.approx(stats.t.isf(0.1, 3) * 0.01 / math.sqrt(2))
    assert names(verdict)[0] == "one"
    known = with_policy(ladder, "screen", margin=0.0, alpha=0.1, sigma=0.02)
    assert set(names(verdict_of(known, stage_of(known, "screen", figures)))) == {"one", "two"}


# ---- beats_baseline ----

CONFIRM = {"baseline": [3.30, 3.31, 3.32], "one": [3.20, 3.21, 3.22]}


def test_one_variant_is_tested_by_the_pooled_t(ladder: Study, stage_of: Make) -> None:
    verdict = verdict_of(ladder, stage_of(ladder, "confirm", CONFIRM))
    expected = stats.ttest_ind(CONFIRM["one"], CONFIRM["baseline"], alternative="less")
    assert verdict.test["p"] == pytest.approx(expected.pvalue)
    assert verdict.test["statistic"] == pytest.approx(-expected.statistic)
    assert names(verdict) == ["one", "baseline"]
    assert (verdict.proven, verdict.claim) == (False, "candidate")  # the stage is not a proof


def test_several_variants_are_tested_by_dunnett(ladder: Study, stage_of: Make) -> None:
    figures = CONFIRM | {"two": [3.29, 3.30, 3.31]}
    verdict = verdict_of(ladder, stage_of(ladder, "confirm", figures))
    expected = stats.dunnett(
        figures["one"], figures["two"], control=figures["baseline"], alternative="less", rng=np.random.default_rng(0)
    )
    rows = {row.variant: row for row in verdict.ranking}
    assert rows["one"].p == pytest.approx(expected.pvalue[0], abs=2e-4)
    assert rows["two"].p == pytest.approx(expected.pvalue[1], abs=2e-3)
    assert verdict.test["name"] == "one-sided Dunnett"
    assert "p = " in verdict.not_chosen["two"]


def test_an_arm_whose_variance_differs_is_tested_by_welch(ladder: Study, stage_of: Make) -> None:
    figures = CONFIRM | {"two": [3.0, 3.3, 3.6]}
    verdict = verdict_of(ladder, stage_of(ladder, "confirm", figures))
    expected = [stats.ttest_ind(figures[n], figures["baseline"], equal_var=False, alternative="less") for n in
                ("one", "two")]  # fmt: skip
    rows = {row.variant: row for row in verdict.ranking}
    assert rows["two"].p == pytest.approx(max(2 * expected[0].pvalue, expected[1].pvalue))


def test_declared_pairs_are_tested_as_pairs(ladder: Study, stage_of: Make) -> None:
    study = with_policy(ladder, "confirm", paired=True)
    figures = {"baseline": [3.0, 3.5, 4.0], "one": [2.98, 3.47, 3.99]}
    verdict = verdict_of(study, stage_of(study, "confirm", figures))
    expected = stats.ttest_rel(figures["one"], figures["baseline"], alternative="less")
    assert verdict.test["p"] == pytest.approx(expected.pvalue)
    assert verdict.test["name"] == "one-sided paired t"
    unpaired = verdict_of(ladder, stage_of(ladder, "confirm", figures))
    assert unpaired.decision == "stop"


def test_the_margin_has_to_be_exceeded(ladder: Study, stage_of: Make) -> None:
    study = with_policy(ladder, "confirm", margin=0.1)
    verdict = verdict_of(study, stage_of(study, "confirm", CONFIRM))
    assert verdict.decision == "stop"
    assert verdict.test["p"] == pytest.approx(0.5)


def test_every_seed_can_be_asked_for(ladder: Study, stage_of: Make) -> None:
    figures = {"baseline": [3.30, 3.31, 3.32], "one": [3.10, 3.11, 3.311], "two": [3.31, 3.32, 3.30]}
    study = with_policy(ladder, "confirm", every_seed=True, variance="pooled", alpha=0.2)
    verdict = verdict_of(study, stage_of(study, "confirm", figures))
    assert verdict.decision == "stop"
    assert "seed 54 is not better" in verdict.reason


def test_a_recorded_baseline_or_a_threshold_describes_and_never_proves(ladder: Study, stage_of: Make) -> None:
    proof = ladder.stages["confirm"].model_copy(update={"proof": True})
    study = ladder.model_copy(update={"stages": ladder.stages | {"confirm": proof}})
    recorded = study.model_copy(
        update={
            "baseline": study.baseline.model_copy(update={"recorded": {"confirm": Recorded(mean=3.3, source="log")}})
        }
    )
    threshold = with_policy(study, "confirm", threshold=3.3, threshold_source="log")
    for each in (recorded, threshold):
        verdict = verdict_of(each, stage_of(each, "confirm", {"one": CONFIRM["one"]}))
        assert names(verdict)[0] == "one"
        assert (verdict.proven, verdict.claim) == (False, "candidate")
        assert verdict.test["p"] == pytest.approx(stats.ttest_1samp(CONFIRM["one"], 3.3, alternative="less").pvalue)
    assert verdict_of(study, stage_of(study, "confirm", {"one": CONFIRM["one"]})).reason.startswith("stop: no baseline")


def test_a_threshold_has_a_source() -> None:
    with pytest.raises(ConfigError, match="threshold_source"):
        load_study(STUDY.replace("policy: beats_baseline", "policy: beats_baseline, threshold: 3.3"))


# ---- reaches_target ----

PROOF = {"one": [3.2745, 3.2747, 3.2771, 3.2794, 3.2767]}


def test_a_mean_shown_to_be_under_the_target_is_proven(ladder: Study, stage_of: Make) -> None:
    verdict = verdict_of(ladder, stage_of(ladder, "proof", PROOF))
    assert verdict.test["p"] == pytest.approx(0.00855446, rel=1e-5)
    assert (verdict.decision, verdict.winner, verdict.proven, verdict.claim) == ("promote", "one", True, "proven")
    strict = with_policy(ladder, "proof", alpha=0.005)
    stopped = verdict_of(strict, stage_of(strict, "proof", PROOF))
    assert (stopped.decision, stopped.proven, stopped.winner) == ("stop", False, None)


def test_a_known_sd_makes_it_a_z_test(ladder: Study, stage_of: Make) -> None:
    study = with_policy(ladder, "proof", sigma=0.0013)
    verdict = verdict_of(study, stage_of(study, "proof", PROOF))
    z = (sum(PROOF["one"]) / 5 - 3.28) * math.sqrt(5) / 0.0013
    assert verdict.test["p"] == pytest.approx(stats.norm.cdf(z))


def test_several_variants_share_the_level(ladder: Study, stage_of: Make) -> None:
    verdict = verdict_of(ladder, stage_of(ladder, "proof", PROOF | {"two": [3.28, 3.281, 3.279, 3.28, 3.282]}))
    assert verdict.test["p"] == pytest.approx(2 * 0.00855446, rel=1e-5)
    assert verdict.decision == "stop"


@pytest.mark.parametrize(
    ("figures", "doubt"),
    [
        ([*PROOF["one"][:4], None], "look before the end"),
        ([*PROOF["one"][:4], Status.BROKEN], None),
        ([3.1, 3.1, 3.1, 3.1, 3.1], None),
    ],
)
def test_a_missing_seed_is_a_look_before_the_end_and_proves_nothing(
    ladder: Study, stage_of: Make, figures: list[Any], doubt: str | None
) -> None:
    stage = ladder.stages["proof"].model_copy(update={"max_broken": 1})
    study = with_policy(ladder.model_copy(update={"stages": ladder.stages | {"proof": stage}}), "proof", alpha=0.05)
    verdict = verdict_of(study, stage_of(study, "proof", {"one": figures}))
    if doubt:
        assert (verdict.decision, verdict.proven) == ("promote", False)
        assert doubt in verdict.reason
    elif figures[-1] is Status.BROKEN:
        assert verdict.proven
        assert verdict.counts == {"broken": 1, "completed": 4}
    else:  # five equal figures have no variance to test with
        assert verdict.decision == "stop"
        assert "nothing to test with" in verdict.reason


def test_seeds_that_chose_the_candidates_prove_nothing(ladder: Study, stage_of: Make) -> None:
    first = verdict_of(ladder, stage_of(ladder, "screen", SCREEN))
    results = stage_of(ladder, "proof", PROOF)
    assert verdict_of(ladder, results.model_copy(update={"previous": [first]})).proven
    assert first.results is not None
    chose = first.model_copy(update={"results": first.results.model_copy(update={"seeds": [results.seeds[0]]})})
    verdict = verdict_of(ladder, results.model_copy(update={"previous": [chose]}))
    assert (verdict.proven, verdict.claim) == (False, "exploratory")


# ---- pivot ----


def pivoting(study: Study, usd: float | None, **rule: Any) -> Study:
    study = with_policy(study, "confirm", pivot={"most": 1} | rule)
    return study.model_copy(update={"budget": study.budget.model_copy(update={"usd": usd})})


def failed(study: Study, stage_of: Make, figures: dict[str, list[float]], spent: float = 46.0) -> StageResults:
    rich = study.model_copy(update={"budget": study.budget.model_copy(update={"usd": None})})
    first = decide(rich, stage_of(rich, "screen", SCREEN))
    assert isinstance(first, Verdict)
    first = first.model_copy(update={"promoted": [ref for ref in first.promoted if ref.name != "two"]})
    return stage_of(study, "confirm", figures, previous=[first], spent_usd=spent)


WORSE = {"baseline": [3.30, 3.31, 3.32], "one": [3.30, 3.32, 3.33]}


def test_a_variant_that_does_not_hold_gives_way_to_the_next_best(ladder: Study, stage_of: Make) -> None:
    study = pivoting(ladder, 276.0)
    answer = decide(study, failed(study, stage_of, WORSE))
    assert isinstance(answer, MoreTrials)
    assert (answer.kind, [ref.name for ref in answer.variants]) == ("pivot", ["two"])
    after = failed(study, stage_of, WORSE | {"two": [3.2, 3.21, 3.22]}, spent=76.0)
    verdict = verdict_of(study, after)
    assert (verdict.decision, verdict.winner) == ("promote", "two")
    no_more = verdict_of(study, failed(study, stage_of, WORSE | {"two": [3.32, 3.33, 3.31]}, spent=76.0))
    assert "no pivot left: 1 of 1 taken" in no_more.reason


def test_a_pivot_that_cannot_be_paid_is_a_stop_that_says_what_it_needs(ladder: Study, stage_of: Make) -> None:
    study = pivoting(ladder, 275.0)
    verdict = verdict_of(study, failed(study, stage_of, WORSE))
    assert verdict.decision == "stop"
    assert verdict.reason.startswith("stop: budget: a pivot to two needs $276")


def test_only_a_futile_variant_gives_way_where_that_is_declared(ladder: Study, stage_of: Make) -> None:
    study = pivoting(ladder, None, when="futile")
    assert isinstance(decide(study, failed(study, stage_of, WORSE)), MoreTrials)
    nearly = {"baseline": [3.30, 3.31, 3.32], "one": [3.29, 3.30, 3.31]}
    verdict = verdict_of(study, failed(study, stage_of, nearly))
    assert (verdict.decision, verdict.winner, verdict.proven) == ("promote", "one", False)
    assert any(note.startswith("no pivot: another 3 seeds") for note in verdict.notes)


def test_each_stage_publishes_how_the_one_before_ranked(ladder: Study, stage_of: Make) -> None:
    first = verdict_of(ladder, stage_of(ladder, "screen", SCREEN))
    assert first.rank_correlation is None
    figures = {"baseline": [3.3, 3.31, 3.32], "one": [3.20, 3.21, 3.22], "two": [3.19, 3.2, 3.21]}
    second = verdict_of(ladder, stage_of(ladder, "confirm", figures, previous=[first]))
    assert second.rank_correlation == {"stage": "screen", "arms": 3, "spearman": pytest.approx(0.5)}
    two = verdict_of(ladder, stage_of(ladder, "confirm", CONFIRM, previous=[first]))
    assert two.rank_correlation == {"stage": "screen", "arms": 2, "spearman": None}
