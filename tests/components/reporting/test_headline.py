"""The sentence at the top says what was found and how surely."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from podium.components.reporting.document import headline
from podium.components.reporting.model import ReportData


@pytest.mark.parametrize(
    ("state", "badge", "sentence"),
    [
        ({"stages": 0}, "in progress", "No verdict yet."),
        (
            {"stages": 1},
            "in progress",
            "emb45-glu3x, emb45, glu3x and baseline go on from ranking to finals.",
        ),
        ({}, "proven", "emb45-glu3x beats the baseline, proven at α\u00a0=\u00a00.05."),
        (
            {"proven": False},
            "candidate",
            "emb45-glu3x has the best mean and is a candidate: a lead over the baseline is not proven.",
        ),
        ({"proven": False, "winner": "baseline"}, "nothing won", "The baseline stands: no variant beat it."),
    ],
)
def test_each_state_has_its_sentence(
    make_report: Callable[..., ReportData], state: dict, badge: str, sentence: str
) -> None:
    head = headline(make_report(**state))
    assert (head.badge, head.sentence) == (badge, sentence)


def test_a_proof_states_effect_interval_p_and_seeds(make_report: Callable[..., ReportData]) -> None:
    detail = headline(make_report()).detail
    for words in (
        "against the baseline's",
        "nats per token better",
        "90\u00a0% interval −",
        "one-sided p\u00a0=\u00a00.0031",
        "3 seeds each",
    ):
        assert words in detail


@pytest.mark.parametrize(("decision", "badge"), [("stop", "stopped"), ("await", "awaiting approval")])
def test_a_stop_and_a_wait_give_the_verdicts_reason(
    make_report: Callable[..., ReportData], decision: str, badge: str
) -> None:
    data = make_report(stages=1)
    verdict = data.stages[0].verdict
    assert verdict is not None
    verdict = verdict.model_copy(update={"decision": decision, "reason": "no baseline: it diverged", "promoted": []})
    head = headline(replace(data, stages=(replace(data.stages[0], verdict=verdict), data.stages[1])))
    assert (head.badge, head.detail) == (badge, "No baseline: it diverged.")


def test_a_failed_gate_says_that_nothing_was_trained(make_report: Callable[..., ReportData]) -> None:
    gate = {"passed": False, "reason": "losses: not finite"}
    head = headline(replace(make_report(stages=0), shakedown=gate))
    assert head.sentence == "The shakedown gate failed: no stage was trained."
    assert head.detail == "Losses: not finite."
