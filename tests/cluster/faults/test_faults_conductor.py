"""The conductor is killed, cancelled or doubled: its trials are found again, and never started twice."""

from __future__ import annotations

import time

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

BASELINE, WIDE, EVERY = "baseline/seed-42", "wide/seed-42", 20


@pytest.mark.core
def test_a_conductor_that_is_killed_and_started_again_finds_its_jobs(scene, undisturbed):
    first = scene.conduct()
    scene.trains()
    before = scene.job_uids()
    first.kill()
    began = time.monotonic()
    second = scene.conduct()
    assert second.ends() == 0, second.said()
    print(
        f"killed and started again: the same {len(before)} Jobs as before, done {time.monotonic() - began:.1f} s later"
    )
    assert len(before) == 2
    assert scene.job_uids() == before
    for trial in (BASELINE, WIDE):
        # Where the trial ended while there was no conductor, its result is all that the next one finds: there is no
        # attempt, or one as the first conductor noted it while it ran.
        attempts = [(attempt["code"], attempt["ended"]) for attempt in scene.attempts(trial)]
        assert attempts in ([(0, True)], [(None, False)], [])
        assert scene.picture(trial) == undisturbed[trial]
    assert not scene.ledger("trial_restarted")


def test_trials_whose_conductor_is_gone_save_and_end(scene, undisturbed):
    scene.jobs = {"patience_seconds": 3}
    conductor = scene.conduct()
    scene.trains(step=EVERY)
    conductor.kill()
    began = time.monotonic()
    scene.wait_for(
        "no trial holds a device any more",
        lambda: all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in scene.listed("pods")),
        120,
    )
    print(f"conductor gone, patience 3 s: the last trial ended after {time.monotonic() - began:.1f} s")
    ended = [trial for trial in (BASELINE, WIDE) if not scene.finished(trial)]
    assert ended, "both trials were done before they could miss their conductor"
    for trial in ended:
        assert "the conductor's counter stands still: saved at step" in scene.log(trial)
    scene.jobs = {}
    again = scene.conduct()
    assert again.ends() == 0, again.said()
    for trial in (BASELINE, WIDE):
        assert not any(attempt["crashed"] for attempt in scene.attempts(trial))
        assert scene.picture(trial) == undisturbed[trial]


def test_a_cancelled_runs_trials_save_and_its_jobs_go(scene, wait_for):
    scene.study = scene.study.replace("budget: {steps: 240}", "budget: {steps: 6000}")
    conductor = scene.conduct()
    scene.trains(step=EVERY)
    came, began = scene.step(), time.monotonic()
    scene.podium("cancel", scene.run, "--store", scene.store)
    assert conductor.ends() == 5, conductor.said()
    print(f"cancelled at step {came} of 6000, all over {time.monotonic() - began:.1f} s later")
    assert "cancelled" in conductor.said()
    wait_for("the Jobs are gone", lambda: not scene.listed("jobs") and not scene.listed("pods"), 60)
    for trial in (BASELINE, WIDE):
        assert "SIGTERM: saved at step" in scene.log(trial)
        assert scene.result(trial) is None
        assert not any(attempt["crashed"] for attempt in scene.attempts(trial))
    assert len(scene.ledger("cancelled")) == 1


def test_a_second_conductor_is_refused_and_disturbs_nothing(scene):
    scene.study = scene.study.replace("budget: {steps: 240}", "budget: {steps: 6000}")
    first = scene.conduct()
    scene.trains(step=EVERY)
    before = scene.job_uids()
    second = scene.conduct()
    assert second.ends() == 2, second.said()
    print(second.said().strip().splitlines()[-1])
    assert "is in use by process" in second.said()
    assert first.process.poll() is None
    assert scene.job_uids() == before
    scene.trains(step=scene.step() + EVERY)
    first.process.terminate()
    assert first.ends() == 130, first.said()
    for trial in (BASELINE, WIDE):
        assert [attempt["crashed"] for attempt in scene.attempts(trial)] == [False]
