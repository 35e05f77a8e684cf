from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from podium.components.study.design import Selection
from podium.components.study.load import load_study
from podium.components.study.plan import plan
from podium.components.study.schema import Price, Study
from podium.components.study.trials import run_usd, stage_cost, total
from podium.trainer.trial.errors import UserError

Text = Callable[..., str]

KEYS = {"trials", "gpu_hours", "usd", "usd_worst", "usd_naive", "stages"}


def test_the_plan_of_parameter_allocation_adds_up_by_hand() -> None:
    planned = plan(load_study("param-allocation")).to_json()
    assert planned.keys() >= KEYS
    assert all(stage.keys() >= {"name", "trials", "gpu_hours", "usd"} for stage in planned["stages"])
    assert [(stage["name"], stage["trials"]) for stage in planned["stages"]] == [("ranking", 6), ("finals", 12)]
    assert planned["stages"][1]["trials_range"] == (3, 12)
    # $1.20 an hour: 3 min shakedown, 6 × 6 min, 12 × 20 min, evaluation of 4 × 15 min
    assert planned["stages"][0]["usd"] == pytest.approx(0.72)
    assert planned["stages"][1]["usd"] == pytest.approx(4.80)
    assert planned["usd"] == pytest.approx(0.06 + 0.72 + 4.80 + 1.20)
    assert planned["gpu_hours"] == pytest.approx((3 + 36 + 240 + 60) / 60)
    # every variant: 6 × 3 × 20 min, and 6 × 15 min of evaluation
    assert planned["usd_naive"] == pytest.approx(0.06 + 7.20 + 1.80)
    assert planned["tokens"] == 6 * 4882 * 1024 + 12 * 12207 * 4096
    assert planned["affordable"]
    assert planned["requests"][0]["gpus"] == 6


def test_the_plan_says_what_the_kill_threshold_and_the_passes_mean() -> None:
    warnings = plan(load_study("param-allocation")).warnings
    assert any("0.0017 nats at PPL 300" in warning for warning in warnings)
    assert any("21 passes" in warning for warning in warnings)


def test_one_axis_alone_costs_less_and_promotes_two(tiny: Study) -> None:
    planned = plan(tiny, selection=Selection(axis="glu"))
    assert [(stage.name, stage.trials) for stage in planned.stages] == [("ranking", 4), ("finals", 6)]
    assert [stage.trials for stage in plan(tiny, selection=Selection(stages=("ranking",))).stages] == [6]


def test_a_ladder_priced_by_run_gives_its_worked_example(tiny_text: Text) -> None:
    """Systems/speedrun.md: 4 variants; A 4×2×$2, B 1×3×$10, C 1×5×$8.40, the baseline recorded in B and C."""
    variants = {
        name: {"overrides": {"optimizer.learning_rate": rate}} for name, rate in [("a", 2e-3), ("b", 3e-3), ("c", 4e-3)]
    }
    stage: dict[str, Any] = {"budget": {"steps": 40}, "promotion": {"policy": "best_mean"}}
    stages = {
        "A": stage | {"seeds": 2, "price": {"usd_per_run": 2}},
        "B": stage | {"seeds": 3, "price": {"usd_per_run": 10}},
        "C": stage | {"seeds": 5, "price": {"usd_per_run": 8.4}},
    }
    stages = {name.lower(): declared for name, declared in stages.items()}
    recorded = {"recorded": {name: {"mean": 3.3, "source": "the record"} for name in "bc"}}
    changes = {"axes": {}, "design": "list", "variants": variants, "stages": stages, "baseline": recorded}
    planned = plan(load_study(tiny_text(changes | {"budget": {"usd": 96}})))
    assert [stage.usd for stage in planned.stages] == [16, 30, 42]
    assert planned.usd == 88
    assert planned.usd_naive == 168
    assert all(stage.affordable for stage in planned.stages)
    tight = plan(load_study(tiny_text(changes | {"budget": {"usd": 50}})))
    assert [stage.affordable for stage in tight.stages] == [True, True, False]
    assert any("c is not affordable: needs $88.00" in warning for warning in tight.warnings)
    run = plan(load_study(tiny_text(changes | {"baseline": {}})))
    assert [stage.usd for stage in run.stages] == [16, 60, 84]


def test_an_unknown_price_stays_unknown(tiny_text: Text) -> None:
    study = load_study(tiny_text({"stages.finals.price": {"usd_per_gpu_hour": 2}}))
    planned = plan(study)
    assert planned.stages[1].usd is None
    assert planned.usd is None
    assert any("minutes_per_run" in warning for warning in planned.warnings)


def test_prices_are_per_device_hour_or_per_run() -> None:
    assert run_usd(Price(usd_per_run=3.0), 8) == 3.0
    assert run_usd(Price(usd_per_gpu_hour=2.0, minutes_per_run=30), 4) == 4.0
    assert run_usd(Price(usd_per_gpu_hour=2.0), 4) is None
    assert run_usd(Price(), 4) == 0.0
    assert total([1.0, None]) is None
    assert total([]) == 0.0


def test_a_stage_takes_as_many_rounds_as_its_parallel_trials_need(tiny_text: Text) -> None:
    changes = {
        "stages.ranking.resources": {"parallel": 4, "gpus_per_trial": 2},
        "stages.ranking.price": {"minutes_per_run": 30},
    }
    study = load_study(tiny_text(changes))
    cost = stage_cost(study, "ranking", 6)
    assert cost.hours == 1.0
    assert cost.gpu_hours == 6.0
    assert stage_cost(study, "ranking", 6, parallel=6).hours == 0.5


def test_a_proof_with_one_seed_is_warned_about(tiny_text: Text) -> None:
    study = load_study(tiny_text({"stages.finals.seeds": 1, "stages.finals.min_seeds": 1}))
    assert any("one seed never proves" in warning for warning in plan(study).warnings)


def test_a_selection_the_study_does_not_have_is_refused(tiny: Study) -> None:
    with pytest.raises(UserError, match="--variants"):
        plan(tiny, selection=Selection(variants=("emb26",)))
