"""What a running pipeline shows: a line at each change and every ten seconds, or a picture on a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from podium.pipelines.cli.view import (
    LiveView,
    PlainView,
    RunningTrial,
    Snapshot,
    StageCount,
    picture,
    plain_line,
    reasons,
)

TRIAL = RunningTrial("ranking/wide/seed-42", 250_000, 1_000_000, 3.5, 5000.0, 150.0)
STAGES = (
    StageCount("ranking", 6, 3, 1, 1, 0, None),
    StageCount("finals", 0, 0, 0, 0, 0, None, known=False),
)


def snapshot(doing="ranking: training", running=(TRIAL,)):
    return Snapshot(doing, STAGES, tuple(running), 0.25, 5.0)


def test_a_plain_line_has_counts_loss_speed_time_left_and_money():
    line = plain_line(snapshot())
    for word in ("3/6 trials", "1 running", "1 killed", "25%", "loss 3.500", "5k tokens/s", "2m30s left"):
        assert word in line
    assert line.endswith("$0.25 of $5.00 spent")
    assert "\n" not in line


def test_a_trial_that_has_measured_nothing_yet_shows_no_number():
    fresh = RunningTrial("ranking/wide/seed-42", 0, 1_000_000, None, None, None)
    line = plain_line(snapshot(running=[fresh]))
    assert "ranking/wide/seed-42 0%" in line
    assert "loss" not in line


def test_what_trials_wait_for_is_said_once_a_reason():
    names = {f"ranking/v{number}/seed-42": "queued by Kueue in research" for number in range(3)}
    said = tuple(reasons({**names, "ranking/emb25/seed-42": "the secret keys is missing"}))
    assert said == ("3 trials: queued by Kueue in research", "ranking/emb25/seed-42: the secret keys is missing")
    waiting = replace(snapshot(), waiting=said)
    assert "waiting: 3 trials: queued by Kueue in research" in plain_line(waiting)
    assert "waiting: ranking/emb25/seed-42: the secret keys is missing" in draw(picture(waiting))


def test_plain_progress_comes_at_each_change_and_every_ten_seconds(capsys):
    now = [0.0]
    view = PlainView(Console(file=io.StringIO()), clock=lambda: now[0])
    training = "ranking: training"
    looks = [(0, "shakedown"), (3, "shakedown"), (9.9, "shakedown"), (10, "shakedown"), (11, training), (12, training)]
    for seconds, doing in looks:
        now[0] = seconds
        view.show(snapshot(doing))
    lines = [line.split(" | ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["shakedown", "shakedown", training]


def draw(renderable, width=120):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("running", [1, 12, 40])
def test_a_picture_has_a_bar_for_each_of_the_first_running_trials(running):
    trials = [RunningTrial(f"ranking/v{i:02d}/seed-1", 10, 100, 2.0, 5.0, 18.0) for i in range(running)]
    drawn = draw(picture(snapshot(running=trials)))
    assert drawn.count("/seed-1") == min(running, 12)
    assert ("more running" in drawn) == (running > 12)


def test_a_live_view_keeps_events_above_the_picture():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, highlight=False)
    with LiveView(console) as view:
        view.show(snapshot())
        view.event("ended ranking/wide/seed-42 [completed]")
        view.emit("verdict of ranking: promote")
    drawn = console.file.getvalue()
    assert "[completed]" in drawn
    assert "verdict of ranking: promote" in drawn
