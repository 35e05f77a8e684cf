"""The conductor over a stand-in trainer: what is started, what is left alone, what is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.launch.conductor import StageOutcome
from podium.components.launch.launcher import Attempt, Attempts, read_attempts, write_attempts
from podium.components.policies.decide import decide as decide_stage
from podium.components.study.design import Selection
from podium.components.study.layout import TrialKey
from podium.components.study.run import Run
from podium.components.study.schema import Study
from podium.components.study.verdict import MoreTrials, StageResults, Verdict
from podium.trainer.trial.errors import InUseError, UserError
from podium.trainer.trial.lease import Lease
from podium.trainer.trial.result import Status, TrialResult

MakeRun = Callable[..., Run]
Conduct = Callable[..., StageOutcome]
Starts = Callable[[Run], dict[str, int]]
Entries = Callable[[Run, str], dict[str, Any]]


def result_of(run: Run, variant: str, seed: int = 42) -> TrialResult:
    result = run.result(TrialKey("first", variant, seed))
    assert result is not None
    return result


def test_every_trial_gets_a_result_and_one_ledger_entry(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries
) -> None:
    run = make_run(seeds=2)
    assert conducted(run) == StageOutcome(trials=8, finished=8)
    names = {f"first/{variant}/seed-{seed}" for variant in ("base", "a", "b", "c") for seed in (42, 43)}
    assert starts(run) == dict.fromkeys(names, 1)
    assert entries(run, "trial_ended").keys() == names
    assert result_of(run, "a", 43).seed == 43


def test_a_second_conductor_finds_nothing_to_do_and_changes_nothing(
    make_run: MakeRun, conducted: Conduct, starts: Starts
) -> None:
    run = make_run()
    conducted(run)
    before = {key: run.storage.read_bytes(key) for key in run.storage.list()}
    assert conducted(run) == StageOutcome(trials=4, finished=4)
    assert set(starts(run).values()) == {1}
    assert {key: run.storage.read_bytes(key) for key in run.storage.list()} == before


def test_the_baseline_starts_first(make_run: MakeRun, conducted: Conduct) -> None:
    run = make_run(names=["0-before-it", "a"])
    conducted(run, slots=1)
    folder = run.storage.local_path("trials/first")
    assert folder is not None
    begun = {path.parents[2].name: path.stat().st_mtime_ns for path in folder.glob("*/*/starts/1")}
    assert min(begun, key=lambda name: begun[name]) == "base"


def test_the_spec_says_where_everything_lies_and_is_the_same_each_time(make_run: MakeRun, conducted: Conduct) -> None:
    kill = "{kill: {criteria: [{metric: loss, threshold: 0.5}], span_tokens: 1000, min_tokens: 1000}}"
    run = make_run(stop=kill, names=["a"])
    conducted(run)
    spec = json.loads(run.storage.read_text("trials/first/a/seed-42/config.json"))
    assert spec["reference_curves"] == [f"{run.uri}/trials/first/base/seed-42"]
    assert spec["watch"] == f"{run.uri}/lease.json"
    assert (spec["labels"]["stage"], spec["labels"]["variant"], spec["labels"]["seed"]) == ("first", "a", "42")
    assert json.loads(run.storage.read_text("trials/first/base/seed-42/config.json"))["reference_curves"] == []


def test_with_several_seeds_no_trial_judges_itself(make_run: MakeRun, conducted: Conduct) -> None:
    kill = "{kill: {criteria: [{metric: loss, threshold: 0.5}], span_tokens: 1000, min_tokens: 1000}}"
    run = make_run(stop=kill, seeds=2, names=["a"])
    conducted(run)
    assert json.loads(run.storage.read_text("trials/first/a/seed-42/config.json"))["reference_curves"] == []


def test_a_crashed_trial_is_started_again_and_its_lost_time_is_paid(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries
) -> None:
    run = make_run({"a": {"exits": [1, -9], "seconds": 0.2}}, price="{usd_per_gpu_hour: 3600}", names=["a"])
    conducted(run)
    result = result_of(run, "a")
    assert result.status is Status.COMPLETED
    assert result.attempts == starts(run)["first/a/seed-42"] == 3
    attempts = read_attempts(run.storage, "trials/first/a/seed-42")
    assert [(attempt.code, attempt.crashed) for attempt in attempts.attempts] == [(1, True), (-9, True), (0, False)]
    assert result.device_seconds == pytest.approx(attempts.seconds, abs=0.002)
    assert result.cost_usd == pytest.approx(attempts.seconds, abs=0.01), "3600 dollars an hour are one a second"
    assert entries(run, "trial_restarted").keys() == {"first/a/seed-42#2", "first/a/seed-42#3"}


def test_a_trial_whose_retries_are_used_up_is_broken_with_its_last_lines_and_its_cost(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries
) -> None:
    run = make_run({"a": {"exits": [1, 1, 1, 1]}}, retries=1, price="{usd_per_gpu_hour: 3600}")
    assert conducted(run).finished == 4
    result = result_of(run, "a")
    assert starts(run)["first/a/seed-42"] == 2
    assert result.status is Status.BROKEN
    assert result.reason == "crashed 2 times; the last attempt ended with exit code 1"
    assert result.log_tail == ["attempt 1 of a", "attempt 2 of a"]
    assert result.cost_usd is not None
    assert result.cost_usd > 0
    assert entries(run, "broken").keys() == {"first/a/seed-42"}
    assert result_of(run, "b").status is Status.COMPLETED


def test_a_config_that_cannot_be_run_is_not_tried_twice(make_run: MakeRun, conducted: Conduct, starts: Starts) -> None:
    run = make_run({"a": {"exits": [2, 2, 2]}})
    conducted(run)
    assert starts(run)["first/a/seed-42"] == 1
    assert result_of(run, "a").reason == "its config can't be run; the last attempt ended with exit code 2"


def test_a_trial_that_saved_and_ended_is_run_again_without_counting(
    make_run: MakeRun, conducted: Conduct, starts: Starts
) -> None:
    run = make_run({"a": {"exits": [75, 75]}}, retries=0, names=["a"])
    conducted(run)
    assert result_of(run, "a").status is Status.COMPLETED
    assert starts(run)["first/a/seed-42"] == 3


def test_an_end_without_a_result_is_a_crash_whatever_the_code(make_run: MakeRun, conducted: Conduct) -> None:
    run = make_run({"a": {"exits": [0, 0]}}, retries=1, names=["a"])
    conducted(run)
    assert result_of(run, "a").status is Status.BROKEN
    assert result_of(run, "a").reason.endswith("exit code 0, but no result")


def test_attempts_of_a_dead_conductor_count_as_time_and_not_as_crashes(make_run: MakeRun, conducted: Conduct) -> None:
    run = make_run(retries=0, price="{usd_per_gpu_hour: 3600}", names=["a"])
    lost = Attempts(attempts=[Attempt(seconds=100.0)])
    write_attempts(run.storage, "trials/first/a/seed-42", lost)
    conducted(run)
    result = result_of(run, "a")
    assert result.status is Status.COMPLETED
    assert result.attempts == 2
    assert result.cost_usd is not None
    assert 100 < result.cost_usd < 130


def test_a_result_whose_conductor_died_before_it_was_priced_is_priced_once(
    make_run: MakeRun, conducted: Conduct
) -> None:
    run = make_run(price="{usd_per_gpu_hour: 3600}", names=["a"])
    conducted(run)
    priced = result_of(run, "a")
    bare = priced.model_copy(update={"device_seconds": None, "cost_usd": None})
    run.storage.write_json("trials/first/a/seed-42/result.json", bare.model_dump(mode="json"))
    conducted(run)
    assert result_of(run, "a") == priced


def test_what_would_break_the_budget_is_not_run_and_says_so(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries
) -> None:
    # $10 a second: a fifth of a second is expected ($2 a trial), half a second is what it takes
    price = "{usd_per_gpu_hour: 36000, minutes_per_run: 0.003333333}"
    run = make_run({"*": {"seconds": 0.5}}, price=price, budget="{usd: 13}", seeds=2, names=["a", "b"])
    assert conducted(run, slots=1).finished == 6
    results = [result_of(run, variant, seed) for seed in (42, 43) for variant in ("base", "a", "b")]
    left_out = [result for result in results if result.status is Status.NOT_RUN_BUDGET]
    assert len(starts(run)) + len(left_out) == 6
    assert 3 <= len(left_out) <= 5
    assert all(result.cost_usd == 0 for result in left_out)
    assert left_out[0].reason.endswith("it would take $2.00 more, and the budget is $13.00")
    assert len(entries(run, "budget")) == len(left_out)
    spent = sum(result.cost_usd or 0 for result in results)
    assert spent > 11, "what fits is run"
    assert run.spent_usd() == pytest.approx(spent, abs=0.001)


def test_a_diverged_baseline_ends_the_stage(make_run: MakeRun, conducted: Conduct, starts: Starts) -> None:
    script = {"base": {"status": "diverged", "losses": [9.0]}, "a": {"seconds": 30}}
    run = make_run(script)
    outcome = conducted(run)
    assert outcome.finished == 1
    assert outcome.stopped == "the baseline first/base/seed-42 diverged: all steps done"
    assert starts(run).keys() <= {"first/base/seed-42", "first/a/seed-42", "first/b/seed-42"}
    assert run.result(TrialKey("first", "a", 42)) is None, "it was told to save, and has no result"


def test_a_baseline_with_enough_seeds_left_goes_on(make_run: MakeRun, conducted: Conduct) -> None:
    run = make_run({"base/42": {"status": "diverged"}}, seeds=2, min_seeds=1, names=["a"])
    assert conducted(run) == StageOutcome(trials=4, finished=4)


def test_a_cancelled_run_lets_its_trials_save_and_can_go_on(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries
) -> None:
    run = make_run({"*": {"seconds": 30}})
    run.storage.write_json("cancel.json", {"cancelled": True})
    outcome = conducted(run)
    assert outcome.cancelled
    assert outcome.finished == 0
    assert len(entries(run, "cancelled")) == 1
    run.storage.delete("cancel.json")
    run.storage.write_json("script.json", {})
    assert conducted(run) == StageOutcome(trials=4, finished=4)


def test_a_part_of_the_stage_runs_alone(make_run: MakeRun, conducted: Conduct, starts: Starts) -> None:
    run = make_run()
    conducted(run, selection=Selection(variants=("b",)))
    assert "first/b/seed-42" in starts(run)
    assert "first/a/seed-42" not in starts(run)


def test_a_run_that_another_process_conducts_is_refused_before_anything_is_written(
    make_run: MakeRun, conducted: Conduct
) -> None:
    run = make_run()
    before = run.storage.list()
    with Lease(run.storage, "lease.json", what="run"):
        with pytest.raises(InUseError, match="is in use by process"):
            conducted(run)
        assert [key for key in run.storage.list() if key != "lease.json"] == before


def test_a_trial_that_another_process_trains_is_waited_for(
    make_run: MakeRun, conducted: Conduct, starts: Starts
) -> None:
    run = make_run(names=["a"])
    done = make_run(names=["a"], store="elsewhere")
    conducted(done)
    folder = "trials/first/a/seed-42"
    import threading
    import time

    with Lease(run.storage, f"{folder}/lease.json", what="trial") as lease:

        def finish() -> None:
            time.sleep(1.0)
            assert not lease.lost
            run.storage.write_bytes(f"{folder}/result.json", done.storage.read_bytes(f"{folder}/result.json"))

        writer = threading.Thread(target=finish)
        writer.start()
        conducted(run)
        writer.join()
    assert starts(run) == {"first/base/seed-42": 1}
    assert result_of(run, "a").status is Status.COMPLETED


def test_a_result_of_another_recipe_is_never_mixed_in(make_run: MakeRun, conducted: Conduct) -> None:
    run = make_run(names=["a"])
    conducted(run)
    changed = result_of(run, "a").model_copy(update={"fingerprint": "0" * 16})
    run.storage.write_json("trials/first/a/seed-42/result.json", changed.model_dump(mode="json"))
    with pytest.raises(UserError, match="--new makes another run"):
        conducted(run)


def test_screening_results_of_another_run_of_the_store_are_taken_over(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries
) -> None:
    earlier = make_run(names=["a", "b"], price="{usd_per_run: 1}")
    conducted(earlier)
    later = make_run(names=["a", "b", "c"], price="{usd_per_run: 1}")
    assert later.id != earlier.id
    conducted(later)
    assert starts(later).keys() >= {"first/c/seed-42"}
    assert entries(later, "trial_restarted") == {}
    assert {key: data["run"] for key, data in entries(later, "reuse").items()} == {
        f"first/{name}/seed-42": earlier.id for name in ("base", "a", "b")
    }
    assert result_of(later, "a").labels["run_id"] == later.id
    assert later.spent_usd() == 1


def test_trials_that_the_policy_asks_for_are_run_in_the_same_stage_once(
    make_run: MakeRun, conducted: Conduct, starts: Starts, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(names=["a"])

    def decide(study: Study, results: StageResults) -> Verdict | MoreTrials:
        seeds = {outcome.seed for outcome in results.outcomes if outcome.variant == "a"}
        if len(seeds) < 3:
            asked = [ref for ref in results.variants if ref.name == "a"]
            return MoreTrials(reason="repeat it", variants=asked, seeds=[max(seeds) + 100])
        return decide_stage(study, results)

    monkeypatch.setattr("podium.components.launch.conductor.decide", decide)
    assert conducted(run) == StageOutcome(trials=4, finished=4)
    assert starts(run) == {f"first/{name}": 1 for name in ("base/seed-42", "a/seed-42", "a/seed-142", "a/seed-242")}
    assert [entry["asked"]["seeds"] for entry in entries(run, "more_trials").values()] == [[142], [242]]
    assert len(run.trials("first")) == len(run.results("first").outcomes) == 4
    assert conducted(Run.open(run.store_uri)) == StageOutcome(trials=4, finished=4)
    assert set(starts(run).values()) == {1}
