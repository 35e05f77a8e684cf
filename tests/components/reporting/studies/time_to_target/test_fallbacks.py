"""Fallbacks on made-up results: what is asked for, what the ledger says, and that each comes to an end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.policies.decide import decide
from podium.components.policies.fastest_to_target import variation
from podium.components.study.load import load_study
from podium.components.study.run import Run, finalists
from podium.components.study.verdict import MoreTrials, Verdict
from podium.trainer.trial.errors import ConfigError

Play = Callable[..., tuple[Verdict, list[MoreTrials]]]


def ledger(run: Run, kind: str) -> list[dict[str, Any]]:
    return [entry.data for entry in run.ledger.entries(kind)]  # type: ignore[arg-type]


def test_nobody_at_the_target_is_ranked_by_the_looser_one(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    # 5.0 would take 700 s and more, 5.5 takes 60 % of it
    verdict, asked = play(run, "broad", lambda values, seed: 620.0 + 30 * values["lazy"] + seed)
    assert [each.kind for each in asked] == ["wave", "wave"]
    assert verdict.decision == "promote"
    assert verdict.test["target_loss"] == 5.5
    (taken,) = verdict.fallbacks
    assert taken.name == "relax"
    assert taken.numbers == {
        "target": 5.0, "reached": 0, "trials": 16, "horizon_seconds": 600.0, "relaxed_target": 5.5,
        "reached_relaxed": 15,
    }  # fmt: skip
    assert verdict.ranking[0].variant.endswith("lazy-3")
    (entry,) = ledger(run, "fallback")
    assert entry["numbers"] == taken.numbers
    assert "none of 16 trials reached 5 within 600.0 s" in entry["reason"]


def test_nobody_at_any_target_is_a_stop(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    verdict, _ = play(run, "broad", lambda values, seed: 5000.0)
    assert verdict.decision == "stop"
    assert "nobody reached the target" in verdict.reason
    assert ledger(run, "fallback") == []


def noisy(values: dict[str, Any], seed: int) -> float:
    """Times that vary by a quarter from seed to seed."""
    draw = random.Random(f"{sorted(values.items(), key=str)} {seed}")
    return 60.0 * (1 + abs(values["lazy"] - 10) / 10) * draw.uniform(0.75, 1.35)


def test_noisy_times_are_repeated_and_the_median_ranks(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    verdict, asked = play(run, "broad", noisy)
    repeats = [each for each in asked if each.kind == "repeat"]
    assert repeats
    assert repeats[0].numbers["cv"] > 0.10 == repeats[0].numbers["limit"]
    # base: 4 replicates; no other configuration has two before the fallback but those that rows repeat
    assert repeats[0].numbers["degrees_of_freedom"] >= 3
    assert f"times vary by {repeats[0].numbers['cv']:.1%} over replicates" in repeats[0].reason
    assert verdict.test["by"] == "median"
    (taken,) = verdict.fallbacks
    assert (taken.name, taken.numbers) == ("repeat", repeats[0].numbers)
    leaders = sorted((arm for arm in verdict.ranking if arm.rank is not None), key=lambda arm: arm.rank or 0)[:3]
    assert all(arm.n >= 3 for arm in leaders)
    assert all(arm.n <= 5 for arm in verdict.ranking)
    asked_in_ledger = [entry["asked"]["numbers"] for entry in ledger(run, "more_trials")]
    assert repeats[0].numbers in asked_in_ledger
    # a repeat is a new seed of the same configuration
    places = {(trial.variant.name, trial.seed) for trial in run.trials("broad")}
    assert len(places) == len(run.trials("broad"))


def alike(values: dict[str, Any], seed: int) -> float:
    """Times within 4 % of each other."""
    return 60.0 + 0.2 * values["lazy"] + 0.1 * (seed % 3)


def test_times_all_alike_go_on_to_a_tighter_target(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    verdict, asked = play(run, "broad", alike)
    tighter = asked[-1]
    assert tighter.kind == "fallback"
    assert tighter.numbers["spread"] < tighter.numbers["limit"] == 0.10
    assert tighter.numbers["tighter_target"] == 4.8
    assert len(tighter.trials) == tighter.numbers["trials"] == 16
    assert f"{tighter.numbers['spread']:.1%} of their median" in tighter.reason
    assert verdict.test["target_loss"] == 4.8
    assert [taken.name for taken in verdict.fallbacks] == ["tighten"]
    assert verdict.fallbacks[0].numbers == tighter.numbers
    # ranked by the time to 4.8 of the trials that went on
    times = verdict.test["times"]["baseline"]
    assert times["reached"] == times["seeds"] > 1
    assert times["restricted_mean"] == pytest.approx(1.3 * alike({"lazy": 7}, 43), rel=0.01)
    assert [ledger_entry["asked"]["kind"] for ledger_entry in ledger(run, "more_trials")][-1] == "fallback"


def test_a_trial_to_a_tighter_target_goes_on_from_its_own_checkpoint(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    play(run, "broad", alike)
    on = [trial for trial in run.trials("broad") if trial.key.fallback is not None]
    assert len(on) == 16
    for trial in on:
        assert trial.key.folder.endswith(f"seed-{trial.seed}-to-4.8")
        first = trial.continues
        assert first is not None
        assert (first.variant, first.seed) == (trial.variant, trial.seed)
        assert trial.fingerprint != first.fingerprint
        spec = run.run_spec(trial)
        assert spec.continues == first.fingerprint
        result = run.result(first.key)
        assert result is not None
        assert spec.start_checkpoint == f"{run.uri}/{first.key.folder}/{result.last_checkpoint}"
        rule = trial.config.stop.target
        assert rule is not None
        assert (rule.loss, sorted(rule.also)) == (4.8, [5.0, 5.5])
        assert trial.config.model_copy(update={"stop": first.config.stop}) == first.config


def test_without_a_checkpoint_it_starts_anew(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    play(run, "broad", alike)
    trial = next(trial for trial in run.trials("broad") if trial.key.fallback is not None)
    assert trial.continues is not None
    for key in run.storage.list(f"{trial.continues.key.folder}/checkpoints"):
        run.storage.delete(key)
    assert run.run_spec(trial).start_checkpoint is None


def test_without_trouble_no_fallback_is_taken(race_run: Callable[..., Run], play: Play, usual_world: Any) -> None:
    run = race_run()
    verdict, asked = play(run, "broad", usual_world)
    assert [each.kind for each in asked] == ["wave", "wave"]
    assert verdict.fallbacks == []
    assert verdict.test["target_loss"] == 5.0
    assert verdict.test["by"] == "restricted_mean"


def test_the_variation_is_pooled_over_variants_by_degrees_of_freedom(race_run: Callable[..., Run], play: Play) -> None:
    run = race_run()
    play(run, "broad", noisy)
    outcomes = [o for o in run.results("broad").outcomes if o.variant in ("baseline", "ns")]
    by_variant: dict[str, list[float]] = {}
    for outcome in outcomes:
        by_variant.setdefault(outcome.variant, []).append(outcome.time_to_target_seconds or 0)
    squares, degrees = 0.0, 0
    for times in by_variant.values():
        mean = sum(times) / len(times)
        squares += sum((time / mean - 1) ** 2 for time in times)
        degrees += len(times) - 1
    found = variation(outcomes)
    assert found["degrees_of_freedom"] == degrees
    assert found["cv"] == pytest.approx((squares / degrees) ** 0.5)


def test_fallbacks_serve_the_designed_stage_too(race_run: Callable[..., Run], play: Play, usual_world: Any) -> None:
    run = race_run()
    play(run, "broad", usual_world)
    verdict, asked = play(run, "fine", alike)
    assert asked[-1].kind == "fallback"
    assert verdict.fallbacks[0].name == "tighten"
    # the winner alone is evaluated and registered, by the trial that reached the tighter target
    (winner,) = finalists(run)
    assert winner.variant == verdict.winner
    assert winner.trial.key.fallback == "to-4.8"


def test_the_second_stage_is_made_by_the_first_ones_verdict_and_stored_before_it_runs(
    race_run: Callable[..., Run], play: Play, usual_world: Any
) -> None:
    run = race_run()
    verdict, _ = play(run, "broad", usual_world)
    assert run.results("fine").outcomes == []
    stored = run.storage.read_json("verdicts/broad.json")
    assert [ref["name"] for ref in stored["promoted"]] == [ref.name for ref in verdict.promoted]
    trials = run.trials("fine")
    assert 32 <= len(trials) <= 40
    assert {trial.variant.name for trial in trials} == {ref.name for ref in verdict.promoted}
    for field in verdict.test["locked"]:
        assert all(ref.overrides[field] == verdict.test["locked"][field] for ref in verdict.promoted)
    final, _ = play(run, "fine", usual_world)
    assert final.winner in {ref.name for ref in verdict.promoted}
    assert final.claim == "candidate"


def test_only_two_that_reached_the_target_still_make_a_design(race_run: Callable[..., Run], play: Play) -> None:
    def two(values: dict[str, Any], seed: int) -> float:
        best = (values["lr"], values["lazy"], values["orthogonalization"]) == (0.01, 10, "polar_express")
        return 100.0 if values["lazy"] == 3 else 70.0 if best else 5000.0

    verdict, _ = play(race_run(), "broad", two)
    assert verdict.decision == "promote"
    assert "only 2 of 5 could be ranked" in verdict.notes
    assert 32 <= sum(ref.repeats for ref in verdict.promoted) <= 40
    assert set(verdict.test["levels"]) == {"optimizer.learning_rate", "model.projection_every"}
    assert verdict.test["design"] == "grid"


def test_a_verdict_is_the_same_from_its_own_inputs(race_run: Callable[..., Run], play: Play) -> None:
    for world in (noisy, alike):
        run = race_run(replace={"name: race": f"name: race-{world.__name__}"})
        verdict, _ = play(run, "broad", world)
        assert verdict.results is not None
        again = decide(run.study, verdict.results)
        assert again == verdict


def test_times_on_two_types_of_device_are_refused(
    race_run: Callable[..., Run], play: Play, usual_world: Any, write_result: Callable[..., None]
) -> None:
    run = race_run()
    other = run.trials("broad")[0]
    write_result(run, other, 50.0, device="A100")
    verdict, _ = play(run, "broad", usual_world)
    assert verdict.decision == "stop"
    assert "times on 2 types of device (A100, H100)" in verdict.reason


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("relax: 5.5", "relax: 5.7", "fallbacks.relax", "must be a looser loss that stop.target.also times (5.5)"),
        ("target: 4.8}\n  fine", "target: 5.2}\n  fine", "fallbacks.tighten.target", "must be under the target 5"),
        ("{target: {loss: 5.0, also: [5.5, 4.8]}, timeout_seconds: 600}", "{}", "stop.target", "must be given"),
        (
            "stop: &stop",
            "resources: {parallel: 2}\n    stop: &stop",
            "resources.parallel",
            "must be 1: the stage ranks times, and trials would share the CPU",
        ),
    ],
)
def test_a_stage_of_times_that_can_not_work_is_refused(
    race_text: str, old: str, new: str, where: str, what: str
) -> None:
    assert old in race_text
    with pytest.raises(ConfigError) as refused:
        load_study(race_text.replace(old, new, 1))
    assert any(where in p.where and what in p.what for p in refused.value.problems), str(refused.value)
