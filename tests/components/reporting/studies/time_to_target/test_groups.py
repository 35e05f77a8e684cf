"""Groups as data: the shipped study's 48 trials written out, waves, replicates, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from podium.components.study.design import baseline, configurations, row_count, variants, waves
from podium.components.study.load import load_study
from podium.components.study.plan import plan
from podium.components.study.run import Run
from podium.components.study.trials import variant_config, wave_trials
from podium.components.study.verdict import MoreTrials, Verdict
from podium.trainer.trial.errors import ConfigError

NS, PE = "newton_schulz", "polar_express"
BASE = {"o": PE, "vr": False, "cwd": False, "lr": 0.003, "lazy": 7, "batch": 32, "m": 0.95}


def row(**changes: Any) -> dict[str, Any]:
    return {**BASE, **changes}


def written_out(best: str) -> dict[str, list[dict[str, Any]]]:
    """The study's page, row by row; `best` is the orthogonalisation that group A chose."""
    both = {"vr": True, "cwd": True}
    return {
        "A": [
            row(o=o, **more)
            for more in ({}, {"lr": 0.01, "lazy": 10}, both, {"lr": 0.01, "batch": 64})
            for o in (NS, PE)
        ],
        "B": [row(o=NS), row(o=NS, vr=True), row(o=NS, cwd=True), row(o=NS, **both)],
        "C": [row(o=best, lazy=lazy) for lazy in (3, 5, 7, 10, 15, 20)],
        "D": [row(o=best, lr=lr) for lr in (0.0005, 0.001, 0.003, 0.005, 0.01, 0.02)],
        "E": [row(batch=16, lr=0.0015), row(), row(batch=64, lr=0.006), row(batch=128, lr=0.012)],
        "F": [row(m=m) for m in (0.85, 0.90, 0.95, 0.98)],
        "G": [
            row(o=NS, lr=0.01, lazy=10, batch=64),
            row(o=NS, lr=0.01, lazy=7, **both),
            row(lr=0.003, lazy=5, **both),
        ],
    }


def plain(study: Any, stage: str, ref: Any) -> dict[str, Any]:
    config = variant_config(study, stage, ref)
    optimizer = config.optimizer
    return {
        "o": optimizer.orthogonalization, "vr": optimizer.variance_reduction, "cwd": optimizer.cautious_weight_decay,
        "lr": optimizer.learning_rate, "lazy": config.model.projection_every, "batch": config.batch.sequences,
        "m": optimizer.momentum,
    }  # fmt: skip


@pytest.mark.parametrize("best", [NS, PE])
def test_the_48_trials_of_the_broad_stage_are_those_of_the_studys_page(best: str) -> None:
    study = load_study("time-to-target")
    first = wave_trials(study, "broad", 0, {}, [])
    second = wave_trials(study, "broad", 1, {"A": {"orthogonalization": best}}, first)
    asked = [*first, *second]
    assert len(asked) == row_count(study, "broad") == 48
    by_group: dict[str, list[Any]] = {}
    for each in asked:
        by_group.setdefault(str(each.group), []).append(plain(study, "broad", each.variant))
    expected = written_out(best)
    for name, rows in expected.items():
        made = sorted(by_group[name], key=repr)
        if name == "G":
            assert all(one in made for one in rows)
            assert len(made) == 16
        else:
            assert made == sorted(rows, key=repr), name
    # a trial is its configuration and its seed: nothing is run twice
    places = Counter((repr(plain(study, "broad", each.variant)), each.seed) for each in asked)
    assert set(places.values()) == {1}


@pytest.mark.parametrize("best", [NS, PE])
def test_rows_that_repeat_a_configuration_are_replicates_with_the_next_seed(best: str) -> None:
    study = load_study("time-to-target")
    first = wave_trials(study, "broad", 0, {}, [])
    asked = [*first, *wave_trials(study, "broad", 1, {"A": {"orthogonalization": best}}, first)]
    seeds: dict[str, list[int]] = {}
    for each in asked:
        seeds.setdefault(each.variant.name, []).append(each.seed)
    for own in seeds.values():
        assert own == list(range(42, 42 + len(own)))
    # A, E and F have the base config itself; C and D too, where Polar Express is the better one
    assert len(seeds["baseline"]) == (5 if best == PE else 3)
    # A and B have it with Newton-Schulz; C and D where that is the better one
    assert len(seeds["ns"]) == (2 if best == PE else 4)


def test_c_and_d_wait_for_a_and_nothing_else_does() -> None:
    study = load_study("time-to-target")
    assert waves(study.stages["broad"].groups) == [["A", "B", "E", "F", "G"], ["C", "D"]]


def test_the_plan_counts_48_trials_and_a_design_of_36() -> None:
    planned = plan(load_study("time-to-target")).to_json()
    broad, fine = planned["stages"]
    assert (broad["trials"], broad["trials_range"]) == (48, None)
    assert (fine["trials"], list(fine["trials_range"])) == (36, [32, 40])
    assert type(broad["trials"]) is type(fine["trials"]) is int
    assert (broad["hours"], fine["hours"]) == (2.4, 1.2)
    named = {branch["name"]: branch["usd"] for branch in planned["branches"]}
    assert named["repeats in broad"] == pytest.approx(planned["usd"] + 10 * 0.125)
    assert named["a tighter target in broad"] == pytest.approx(planned["usd"] + 48 * 0.125)
    assert planned["usd_worst"] > planned["usd"]


def test_every_possible_configuration_is_checked_before_anything_runs(race_text: str) -> None:
    study = load_study(race_text)
    base = baseline(study).axis_values
    groups = study.stages["broad"].groups
    names = {ref.name for ref in variants(study)}
    assert {"baseline", "ns", "ns-lazy-3", "lazy-3"} <= names
    rows = configurations(groups["C"], base, {"A": {"orthogonalization": "newton_schulz"}})
    assert [values["lazy"] for values in rows] == [3, 7, 15]


def test_waves_of_a_run_follow_its_results(
    race_run: Callable[..., Run], play: Callable[..., tuple[Verdict, list[MoreTrials]]], usual_world: Any
) -> None:
    run = race_run()
    assert {trial.group for trial in run.trials("broad")} == {"A", "B"}
    _, asked = play(run, "broad", usual_world)
    first, second = asked[:2]
    assert first.kind == second.kind == "wave"
    assert "groups C, D, with orthogonalization polar_express from group A" in first.reason
    figures = first.numbers["orthogonalization of A"]
    assert figures["polar_express"] < figures["newton_schulz"]
    assert {trial.group for trial in first.trials} == {"C", "D"}
    assert all(trial.variant.axis_values["orthogonalization"] == "polar_express" for trial in first.trials)
    assert {trial.group for trial in second.trials} == {"E"}
    # base: A, C's lazy 7, D's 0.003, E's 32; one with Newton-Schulz
    assert sorted(t.seed for t in run.trials("broad") if t.variant.name == "baseline") == [42, 43, 44, 45]
    assert len(run.trials("broad")) == 16


def test_the_better_value_is_taken_also_where_it_is_the_other_one(
    race_run: Callable[..., Run], play: Callable[..., tuple[Verdict, list[MoreTrials]]], usual_world: Any
) -> None:
    def reverse(values: dict[str, Any], seed: int) -> float:
        return usual_world(values, seed) * (0.8 if values["orthogonalization"] == "newton_schulz" else 1.0)

    _, asked = play(race_run(), "broad", reverse)
    assert "orthogonalization newton_schulz from group A" in asked[0].reason


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("{lr: 0.001}", "{rate: 0.001}", "groups.D.rows.0.rate", "must be an axis"),
        ("{lr: 0.001}", "{lr: 0.002}", "groups.D.rows.0.lr", "must be one of the axis's values"),
        ("{lr: 0.001}", "{orthogonalization: polar_express}", "groups.D.rows.0.orthogonalization", "is taken from"),
        ("after: [D]", "after: [X]", "groups.E", "must wait for another group"),
        ("after: [D]", "after: [E]", "groups.E", "must wait for another group"),
        ("A:\n        rows", "A:\n        after: [E]\n        rows", "groups.A", "waits for itself by way of others"),
        ("orthogonalization: A}", "orthogonalization: B}", "groups.C.takes.orthogonalization", "at least two values"),
        ("    budget: {steps: 5000}\n", "    budget: {steps: 5000}\n    seeds: 2\n", "seeds", "must be 1 with groups"),
        ("design: groups", "design: one_at_a_time", "broad.groups", "design: groups"),
    ],
)
def test_groups_that_can_not_be_run_are_refused(race_text: str, old: str, new: str, where: str, what: str) -> None:
    assert old in race_text
    with pytest.raises(ConfigError) as refused:
        load_study(race_text.replace(old, new, 1))
    assert any(where in p.where and what in p.what for p in refused.value.problems), str(refused.value)
