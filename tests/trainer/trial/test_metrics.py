"""metrics.jsonl as it is written and cut."""

from __future__ import annotations

import json

from podium.trainer.trial.recorder import MetricsLog
from podium.trainer.trial.result import Point, evaluation_line, read_lines, train_line
from podium.trainer.trial.storage import open_storage


def log_of(folder):
    return MetricsLog(open_storage(str(folder)), folder)


def line(step):
    return train_line(step, step * 10, 1.0 / step, 0.1, 1.0, 0.5)


def write(folder, steps, points=()):
    log = log_of(folder)
    log.start(0)
    for step in steps:
        log.add(line(step))
    for point in points:
        log.add(evaluation_line(point))
    log.close()
    return folder / "metrics.jsonl"


def steps_of(path):
    return [entry["step"] for entry in read_lines(path.read_text())]


def test_lines_past_the_checkpoint_are_cut(tmp_path):
    path = write(tmp_path, range(1, 9))
    log = log_of(tmp_path)
    log.start(5)
    log.add(line(6))
    log.close()
    assert steps_of(path) == [1, 2, 3, 4, 5, 6]


def test_a_half_line_of_a_killed_writer_is_cut(tmp_path):
    path = write(tmp_path, range(1, 4))
    path.write_text(path.read_text() + '{"step": 4, "tok')
    log = log_of(tmp_path)
    log.start(3)
    log.add(line(4))
    log.close()
    assert steps_of(path) == [1, 2, 3, 4]


def test_a_start_from_the_beginning_leaves_nothing(tmp_path):
    path = write(tmp_path, range(1, 4))
    log = log_of(tmp_path)
    log.start(0)
    log.close()
    assert path.read_text() == ""


def test_a_start_from_another_run_brings_its_evaluations(tmp_path):
    log = log_of(tmp_path)
    log.start(4, [Point(step=2, tokens=20, val_loss=3.0), Point(step=4, tokens=40, val_loss=2.0)])
    log.close()
    assert [entry["val_loss"] for entry in read_lines((tmp_path / "metrics.jsonl").read_text())] == [3.0, 2.0]


def test_a_line_is_there_before_the_log_is_closed(tmp_path):
    log = log_of(tmp_path)
    log.start(0)
    log.add(line(1))
    assert steps_of(tmp_path / "metrics.jsonl") == [1]
    log.close()


def test_what_is_not_finite_is_null(tmp_path):
    made = train_line(1, 10, float("nan"), 0.1, float("inf"), 0.5)
    assert (made["train_loss"], made["gradient_norm"]) == (None, None)
    json.dumps(made, allow_nan=False)
    assert evaluation_line(Point(step=1, tokens=10, val_loss=1e6))["val_perplexity"] is None


class RemoteStorage:
    """Stands for S3: no local path."""

    def __init__(self, inner):
        self._inner = inner

    def local_path(self, key):
        return None

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_a_remote_store_gets_the_whole_file_at_each_put(tmp_path):
    (tmp_path / "scratch").mkdir()
    store = RemoteStorage(open_storage(str(tmp_path / "store")))
    log = MetricsLog(store, tmp_path / "scratch")
    log.start(0)
    log.add(line(1))
    assert not store.exists("metrics.jsonl")
    log.put()
    log.add(line(2))
    log.put()
    log.close()
    again = MetricsLog(store, tmp_path / "scratch")
    again.start(1)
    again.put()
    again.close()
    assert steps_of(tmp_path / "store" / "metrics.jsonl") == [1]
