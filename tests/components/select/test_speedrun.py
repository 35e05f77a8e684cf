"""The shipped speedrun study on made-up results: who goes on, when it pivots, and what the ledger says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from podium.components.launch.records import Records
from podium.components.policies.decide import decide
from podium.components.select.step import select
from podium.components.study.design import Overrides
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.components.study.trials import run_usd
from podium.components.study.verdict import MoreTrials, Verdict
from podium.pipelines.cli.run import summarise
from podium.trainer.trial.result import Status, TrialResult

Losses = dict[str, dict[str, list[float]]]
"""Stage → variant → a loss a seed."""

SCREEN = {
    "baseline": [3.600, 3.604],
    "palm": [3.580, 3.584],
    "curriculum": [3.610, 3.612],
    "depth-warm": [3.595, 3.597],
}
UNDER = [3.330, 3.334, 3.331]
OVER = [3.372, 3.361, 3.366]
PROVEN = [3.2741, 3.2752, 3.2737, 3.2760, 3.2749]
NEAR = [3.2790, 3.2811, 3.2781, 3.2822, 3.2790]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_corpus: Path) -> Callable[[float], Run]:
    """A run of the study as it is shipped, but for its corpus, under this budget in dollars."""
    monkeypatch.setenv("PODIUM_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def make(budget: float) -> Run:
        study = load_study("speedrun", overrides=Overrides(data=str(small_corpus), budget_usd=budget))
        return Run.create(str(tmp_path / "store"), study)

    return make


def climb(run: Run, losses: Losses) -> list[Verdict]:
    """Play conductor and select: results as they are made up, until a verdict stops or the ladder ends."""
    verdicts = []
    for stage in run.stages:
        while True:
            _finish(run, stage, losses[stage])
            answer = decide(run.study, run.results(stage))
            if not isinstance(answer, MoreTrials):
                break
            Records(run, stage).more_trials(answer)
        select(run.id, run.store_uri, stage, "")
        verdict = run.verdict(stage)
        assert verdict is not None
        verdicts.append(verdict)
        if verdict.decision != "promote":
            break
    return verdicts


def _finish(run: Run, stage: str, losses: dict[str, list[float]]) -> None:
    price = run.study.stages[stage].price
    seen: dict[str, int] = {}
    for trial in run.trials(stage):
        place = seen[trial.variant.name] = seen.get(trial.variant.name, -1) + 1
        result = TrialResult(
            run_name=trial.key.name,
            fingerprint=trial.fingerprint,
            status=Status.COMPLETED,
            reason="as made up",
            seed=trial.seed,
            final_val_loss=losses[trial.variant.name][place],
            cost_usd=run_usd(price, 1),
        )
        run.storage.write_json(f"{trial.key.folder}/config.json", run.run_spec(trial).model_dump(mode="json"))
        run.storage.write_json(f"{trial.key.folder}/result.json", result.model_dump(mode="json"))


def promoted(verdict: Verdict) -> list[str]:
    return [ref.name for ref in verdict.promoted]


def test_a_clear_winner_goes_up_alone_and_is_proven(make_run: Callable[[float], Run]) -> None:
    run = make_run(96)
    a, b, c = climb(run, {"a": SCREEN, "b": {"palm": UNDER}, "c": {"palm": PROVEN}})
    assert promoted(a) == ["palm"]
    assert promoted(b) == ["palm"]
    assert b.test["control_mean"] == 3.36
    assert "threshold" in b.test["control"]
    assert (c.winner, c.proven, c.claim) == ("palm", True, "proven")
    assert c.test["p"] < 0.01
    assert c.test["baseline"]["mean"] == 3.30
    assert c.test["baseline"]["method"] == "descriptive"
    entries = {entry.key.split("/")[0]: entry.data for entry in run.ledger.entries("verdict")}
    assert set(entries) == {"a", "b", "c"}
    assert run.spent_usd() == pytest.approx(88)


def test_a_near_tie_goes_to_the_smaller_spread(make_run: Callable[[float], Run]) -> None:
    screen = SCREEN | {"palm": [3.575, 3.589], "depth-warm": [3.584, 3.585]}  # means 3.5820 and 3.5845
    verdict = climb(make_run(96), {"a": screen, "b": {"depth-warm": OVER}})[0]
    assert promoted(verdict) == ["depth-warm"]
    assert "near tie" in " ".join(verdict.notes)
    assert "1 of 2 can be paid" in " ".join(verdict.notes)


def test_two_go_on_where_both_can_be_paid(make_run: Callable[[float], Run]) -> None:
    screen = SCREEN | {"palm": [3.580, 3.584], "depth-warm": [3.584, 3.585]}
    a, b, c = climb(
        make_run(130),
        {"a": screen, "b": {"palm": UNDER, "depth-warm": [3.32, 3.321, 3.319]}, "c": {"depth-warm": PROVEN}},
    )
    assert sorted(promoted(a)) == ["depth-warm", "palm"]
    assert promoted(b) == ["depth-warm"]
    assert c.proven


def test_a_winner_that_does_not_hold_gives_way_once_to_the_next_best(make_run: Callable[[float], Run]) -> None:
    run = make_run(118)
    _, b, c = climb(run, {"a": SCREEN, "b": {"palm": OVER, "depth-warm": UNDER}, "c": {"depth-warm": PROVEN}})
    assert promoted(b) == ["depth-warm"]
    assert c.winner == "depth-warm"
    (entry,) = run.ledger.entries("more_trials")
    assert entry.data["asked"]["kind"] == "pivot"
    assert "pivot from palm to depth-warm" in entry.data["reason"]
    assert run.spent_usd() == pytest.approx(118)


def test_a_second_one_that_does_not_hold_is_the_end(make_run: Callable[[float], Run]) -> None:
    run = make_run(200)
    verdicts = climb(run, {"a": SCREEN, "b": {"palm": OVER, "depth-warm": OVER}})
    assert verdicts[-1].decision == "stop"
    assert len(list(run.ledger.entries("more_trials"))) == 1
    assert run.state() == "stopped"


def test_without_the_money_for_a_pivot_it_stops_and_says_what_it_needs(make_run: Callable[[float], Run]) -> None:
    run = make_run(96)
    b = climb(run, {"a": SCREEN, "b": {"palm": OVER}})[-1]
    assert b.decision == "stop"
    assert b.reason.startswith("stop: budget: a pivot to depth-warm needs $118.00, the budget is $96.00")
    assert not list(run.ledger.entries("more_trials"))


def test_one_seed_over_the_threshold_breaks_the_trend(make_run: Callable[[float], Run]) -> None:
    b = climb(make_run(96), {"a": SCREEN, "b": {"palm": [3.32, 3.361, 3.32]}})[-1]
    assert b.decision == "stop"
    assert "seed 53 is not better" in b.reason


def test_a_proof_that_fails_at_one_percent_stops(make_run: Callable[[float], Run]) -> None:
    run = make_run(96)
    c = climb(run, {"a": SCREEN, "b": {"palm": UNDER}, "c": {"palm": NEAR}})[-1]
    assert c.decision == "stop"
    assert 0.01 < c.test["p"] < 0.5
    assert run.state() == "stopped"


def test_a_leading_baseline_ends_the_study(make_run: Callable[[float], Run]) -> None:
    a = climb(make_run(96), {"a": SCREEN | {"baseline": [3.5, 3.501]}})[-1]
    assert (a.decision, a.winner) == ("stop", None)
    assert "the baseline leads" in a.reason


def test_a_figure_is_said_to_be_against_what_it_is_against(make_run: Callable[[float], Run]) -> None:
    run = make_run(96)
    a, b, c = climb(run, {"a": SCREEN, "b": {"palm": UNDER}, "c": {"palm": PROVEN}})
    assert (a.opponent, b.opponent, c.opponent) == ("the baseline", "the threshold 3.36", "the target 3.28")
    assert "difference to target 3.28" in select(run.id, run.store_uri, "c", "").metrics
    page = run.storage.read_text("report/index.html")
    assert "palm reaches the target 3.28, proven at" in page
    assert summarise(run)["verdict"].startswith("proven: final_val_loss 3.2748, -0.0052 against the target 3.28, p = ")
