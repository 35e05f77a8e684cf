"""Experts that collapsed are an answer, where nothing is ranked; anywhere else they are a failure of their variant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from podium.components.policies.decide import decide
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.verdict import StageResults
from podium.trainer.trial.result import Status

Make = Callable[..., StageResults]


@pytest.fixture(scope="module")
def emergence() -> Study:
    return load_study("moe-emergence", profile="smoke")


@pytest.mark.parametrize("stage", ["no-lb", "top2"])
def test_a_collapsed_run_goes_on_and_is_named(emergence: Study, stage_of: Make, stage: str) -> None:
    verdict = decide(emergence, stage_of(emergence, stage, {"gpt2": [Status.COLLAPSED]}))
    assert verdict.decision == "promote"
    assert [ref.name for ref in verdict.promoted] == ["gpt2"]
    assert "collapsed, which is a result: gpt2" in verdict.reason
    assert verdict.ranking[0].rank is None
    assert verdict.not_chosen == {"gpt2": "seed 42 collapsed"}


@pytest.mark.parametrize("end", [Status.DIVERGED, Status.BROKEN, Status.OUT_OF_MEMORY])
def test_other_failures_still_stop(emergence: Study, stage_of: Make, end: Status) -> None:
    assert decide(emergence, stage_of(emergence, "no-lb", {"gpt2": [end]})).decision == "stop"


def test_where_arms_are_ranked_a_collapse_is_a_failure(allocation: Study, stage_of: Make) -> None:
    figures = {"baseline": [1.0, 1.1, 1.05], "emb25": [Status.COLLAPSED, 0.8, 0.7]}
    verdict = decide(allocation, stage_of(allocation, "finals", figures))
    assert [ref.name for ref in verdict.promoted] == ["baseline"]
    assert "collapsed" in verdict.not_chosen["emb25"]


def test_top2_that_could_not_be_paid_leaves_the_way_to_registration(emergence: Study, stage_of: Make) -> None:
    before = decide(emergence, stage_of(emergence, "no-lb", {"gpt2": [Status.COLLAPSED]}))
    results = stage_of(emergence, "top2", {"gpt2": [Status.NOT_RUN_BUDGET]}, previous=[before])
    verdict = decide(emergence, results)
    assert verdict.decision == "promote"
    assert [ref.name for ref in verdict.promoted] == ["gpt2"]
