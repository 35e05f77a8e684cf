"""The clock with a time of its own."""

from __future__ import annotations

from contextlib import suppress

import pytest

from podium.trainer.builtin.state import Clock


class Time:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def time():
    return Time()


def test_evaluation_inside_training_is_not_training(time):
    clock = Clock(now=time)
    with clock.measure("training"):
        time.seconds += 3
        with clock.measure("evaluation"):
            time.seconds += 10
            with clock.measure("checkpoint"):
                time.seconds += 100
            time.seconds += 1
        time.seconds += 2
    time.seconds += 1000
    expected = {"training": 5.0, "evaluation": 11.0, "compile": 0.0, "checkpoint": 100.0, "untimed": 0.0}
    assert clock.state_dict() == expected


def test_a_reading_in_the_middle_counts_up_to_now(time):
    clock = Clock(now=time)
    with clock.measure("training"):
        time.seconds += 3
        assert clock.seconds("training") == 3.0
        time.seconds += 1
        assert clock.seconds("training") == 4.0


def test_earlier_attempts_are_added(time):
    clock = Clock(now=time)
    clock.load_state_dict({"training": 7.0, "evaluation": 1.0, "compile": 2.0, "checkpoint": 3.0})
    with clock.measure("training"):
        time.seconds += 3
    assert clock.seconds("training") == 10.0


def test_the_device_is_waited_for_at_every_change(time):
    waits = []
    clock = Clock(synchronize=lambda: waits.append(time.seconds), now=time)
    with clock.measure("training"):
        time.seconds += 1
        with clock.measure("evaluation"):
            time.seconds += 1
    assert waits == [0.0, 1.0, 2.0, 2.0]


def test_an_error_ends_the_measurement(time):
    clock = Clock(now=time)
    with suppress(ZeroDivisionError), clock.measure("training"):
        time.seconds += 1
        1 / 0  # noqa: B018
    time.seconds += 5
    assert clock.seconds("training") == 1.0
