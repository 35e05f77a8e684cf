"""The learning rate at the steps where it is known."""

from __future__ import annotations

import itertools

import pytest

from podium.trainer.config import ScheduleConfig
from podium.trainer.optim.schedules import learning_rate


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
