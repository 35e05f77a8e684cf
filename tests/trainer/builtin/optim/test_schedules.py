"""The learning rate at the steps where it is known."""

from __future__ import annotations

import itertools

import pytest

from podium.trainer.builtin.config import ScheduleConfig
from podium.trainer.builtin.optim.build import learning_rate


def rates(schedule, steps=100, peak=2.0):
    return [learning_rate(step, steps, peak, schedule) for step in range(1, steps + 1)]


def test_warm_up_ends_on_the_peak_and_the_last_step_has_the_floor():
    made = rates(ScheduleConfig(warmup_fraction=0.1, final_fraction=0.25))
    assert made[0] == pytest.approx(0.2)
    assert made[9] == pytest.approx(2.0)
    assert made[-1] == pytest.approx(0.5)
    assert max(made) == pytest.approx(2.0)


def test_cosine_is_half_way_at_half_time():
    made = rates(ScheduleConfig(warmup_fraction=0.0, final_fraction=0.0))
    assert made[49] == pytest.approx(1.0)


def test_cosine_never_rises_after_the_warm_up():
    made = rates(ScheduleConfig(warmup_fraction=0.1))
    assert all(later < earlier for earlier, later in itertools.pairwise(made[9:]))


def test_constant_stays_on_the_peak():
    assert set(rates(ScheduleConfig(name="constant", warmup_fraction=0.0))) == {2.0}


def test_a_run_of_one_step_takes_it_at_a_rate():
    assert learning_rate(1, 1, 1.0, ScheduleConfig(warmup_fraction=0.0, final_fraction=0.1)) == pytest.approx(0.1)
    assert learning_rate(1, 1, 1.0, ScheduleConfig(warmup_fraction=0.02)) > 0


def test_warmdown_is_constant_then_falls_by_equal_steps():
    schedule = ScheduleConfig(name="warmdown", warmup_fraction=0.0, final_fraction=0.0, warmdown_steps=20)
    made = rates(schedule)
    assert set(made[:81]) == {2.0}  # the decay's first step has the peak, as in the speedruns
    assert made[-1] == pytest.approx(2.0 / 20)
    falls = [earlier - later for earlier, later in itertools.pairwise(made[80:])]
    assert falls == pytest.approx([0.1] * 19)


def test_warmdown_over_a_fraction_is_that_many_steps():
    by_steps = ScheduleConfig(name="warmdown", warmup_fraction=0.1, final_fraction=0.1, warmdown_steps=25)
    by_fraction = ScheduleConfig(name="warmdown", warmup_fraction=0.1, final_fraction=0.1, warmdown_fraction=0.25)
    assert rates(by_steps) == rates(by_fraction)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "warmdown"},
        {"name": "warmdown", "warmdown_steps": 5, "warmdown_fraction": 0.5},
        {"name": "cosine", "warmdown_steps": 5},
    ],
)
def test_a_warmdown_has_one_length_and_nothing_else_has_one(settings):
    with pytest.raises(ValueError, match="warmdown_steps and warmdown_fraction"):
        ScheduleConfig(**settings)
