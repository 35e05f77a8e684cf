"""The writer's thread: order, retries and failures."""

from __future__ import annotations

import threading

import pytest

from podium.trainer.builtin.checkpoint import BackgroundWriter
from podium.trainer.trial.errors import NotFoundError, StorageError


@pytest.fixture
def writer():
    writer = BackgroundWriter(retry_seconds=(0.0, 0.0))
    yield writer
    writer.close()


def test_jobs_run_in_order_and_beside_the_caller(writer):
    gate, done = threading.Event(), []
    writer.submit(gate.wait)
    writer.submit(lambda: done.append(1))
    writer.submit(lambda: done.append(2))
    assert done == []
    gate.set()
    writer.drain()
    assert done == [1, 2]


def test_a_store_that_comes_back_costs_nothing(writer, capsys):
    tries = []

    def job():
        tries.append(1)
        if len(tries) < 3:
            raise StorageError("away")

    writer.submit(job).result()
    assert len(tries) == 3
    assert "away" in capsys.readouterr().out


def test_a_store_that_stays_away_is_raised_and_no_job_runs_after_it(writer):
    done = []

    def job():
        raise StorageError("away for good")

    writer.submit(job)
    writer.submit(lambda: done.append(1))
    with pytest.raises(StorageError, match="for good"):
        writer.drain()
    with pytest.raises(StorageError, match="for good"):
        writer.submit(lambda: None)
    assert done == []


def test_a_bug_is_not_tried_twice(writer):
    tries = []

    def job():
        tries.append(1)
        raise NotFoundError("never there")

    with pytest.raises(NotFoundError):
        writer.submit(job).result()
    assert len(tries) == 1


def test_closing_finishes_the_jobs_at_hand():
    writer, done = BackgroundWriter(), []
    for number in range(5):
        writer.submit(lambda number=number: done.append(number))
    writer.close()
    assert done == [0, 1, 2, 3, 4]
