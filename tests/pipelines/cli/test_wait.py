"""Following a run on Kubeflow: what ends it, what is retried, and the exit code that comes out."""

import threading
import time

import pytest

from podium.components.study import layout
from podium.components.study.layout import StepFailure, note_failure, note_run
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import open_kubeflow
from podium.pipelines.submit import Submitted
from podium.pipelines.wait import wait
from podium.trainer.trial.errors import UserError

USER = StepFailure("prepare_data", "user", "corpus: must be a file, got 'nowhere'")
LOST_STORE = StepFailure("train", "failed", "s3://bucket: the server is away")
BUG = StepFailure("select", "crash", "ValueError: a bug of ours")


class Followed:
    """A run on the stand-in, and the run of ours that it executes."""

    def __init__(self, kfp, run):
        self.kfp, self.run = kfp, run
        self.events = []
        with open_kubeflow(Address(host=kfp.host)) as kubeflow:
            self.id = kubeflow.create_run(
                "demo",
                experiment_id=kubeflow.experiment(kfp.study),
                pipeline={"pipeline_spec": {"pipelineInfo": {"name": "demo"}}},
                parameters={"store": run.store_uri},
            )

    def registers(self):
        note_run(self.run.store, self.id, self.run.id)

    def says(self, failure):
        note_failure(self.run.store, failure, run_id=self.run.id, kubeflow_run=self.id)

    def becomes(self, state, **tasks):
        self.kfp.state.set_run(self.id, state, tasks)

    def wait(self, retries=0, look=None):
        with open_kubeflow(Address(host=self.kfp.host)) as kubeflow:
            options = {"retries": retries, "look": look, "event": self.events.append, "poll_seconds": 0.02}
            return wait(kubeflow, self.id, self.run.store_uri, **options)


@pytest.fixture
def follow(kfp, make_run):
    def make(until="registered"):
        return Followed(kfp, make_run(until))

    return make


def test_a_run_that_succeeds_ends_with_the_runs_own_state_and_exit_code(follow):
    followed = follow()
    followed.registers()
    followed.becomes("SUCCEEDED")
    found = followed.wait()
    assert (found.state, found.exit_code, found.run_id, found.retries) == ("succeeded", 0, followed.run.id, 0)


def test_a_run_that_a_verdict_stopped_is_no_failure_and_is_not_retried(follow):
    followed = follow("ranking")
    followed.registers()
    verdict = followed.run.verdict("ranking").model_copy(update={"decision": "stop", "reason": "nothing is better"})
    followed.run.storage.write_json(layout.verdict_key("ranking"), verdict.model_dump(mode="json"))
    followed.becomes("SUCCEEDED")
    found = followed.wait(retries=3)
    assert (found.state, found.exit_code) == ("stopped", 3)
    assert followed.kfp.state.retries == []


def test_a_failed_gate_is_exit_code_4(follow):
    followed = follow("start")
    followed.registers()
    followed.run.storage.write_json(layout.SHAKEDOWN, {"passed": False, "reason": "losses are not finite"})
    followed.becomes("SUCCEEDED")
    assert followed.wait(retries=3).exit_code == 4


def test_a_step_that_said_nothing_was_lost_and_is_retried_up_to_the_limit(follow):
    followed = follow()
    followed.registers()
    followed.becomes("FAILED", **{"ranking: train": "FAILED"})
    retried = []

    def look(found, run):
        if found.state == "RUNNING":
            retried.append(found.state)
            followed.becomes("FAILED", **{"ranking: train": "FAILED"})

    found = followed.wait(retries=2, look=look)
    assert followed.kfp.state.retries == [followed.id] * 2
    assert (found.retries, found.exit_code) == (2, 5)
    assert "ranking: train was lost and said nothing" in found.reason
    assert sum("what is finished is not run again" in event for event in followed.events) == 2


def test_a_retry_that_helps_ends_as_if_nothing_had_been_lost(follow):
    followed = follow()
    followed.registers()
    followed.becomes("FAILED", **{"ranking: train": "FAILED"})

    def look(found, run):
        if found.state == "RUNNING":
            followed.becomes("SUCCEEDED", **{"ranking: train": "SUCCEEDED"})

    found = followed.wait(retries=3, look=look)
    assert (found.retries, found.exit_code) == (1, 0)


def test_a_server_that_still_says_failed_after_a_retry_is_not_asked_for_another(follow):
    followed = follow()
    followed.registers()
    followed.kfp.state.retry_lag = 3
    followed.becomes("FAILED", **{"ranking: train": "FAILED"})

    def look(found, run):
        if found.state == "RUNNING":
            followed.becomes("SUCCEEDED")

    assert followed.wait(retries=3, look=look).retries == 1


@pytest.mark.parametrize(("failure", "code"), [(USER, 2), (BUG, 5)])
def test_what_trying_again_would_not_mend_is_not_retried(follow, failure, code):
    followed = follow("start")
    followed.says(failure)
    followed.becomes("FAILED", **{"Prepare data": "FAILED"})
    found = followed.wait(retries=3)
    assert followed.kfp.state.retries == []
    assert found.exit_code == code
    assert failure.message in found.reason


def test_a_step_that_could_not_reach_its_store_is_retried(follow):
    followed = follow()
    followed.registers()
    followed.says(LOST_STORE)
    followed.becomes("FAILED", **{"ranking: train": "FAILED"})

    def look(found, run):
        if found.state == "RUNNING":
            followed.becomes("SUCCEEDED")

    assert followed.wait(retries=1, look=look).retries == 1


def test_a_run_that_somebody_terminated_is_not_retried(follow):
    followed = follow("ranking")
    followed.registers()
    with open_kubeflow(Address(host=followed.kfp.host)) as kubeflow:
        kubeflow.terminate(followed.id)
    found = followed.wait(retries=3)
    assert (found.state, found.exit_code) == ("cancelled", 130)
    assert followed.kfp.state.retries == []


def test_a_run_that_podium_cancelled_is_not_retried(follow):
    followed = follow("ranking")
    followed.registers()
    followed.run.storage.write_json(layout.CANCEL, {"cancelled": True})
    followed.becomes("FAILED", **{"ranking: train": "FAILED"})
    assert followed.wait(retries=3).exit_code == 130
    assert followed.kfp.state.retries == []


def test_a_kubeflow_that_is_away_for_a_while_is_waited_for(follow):
    followed = follow()
    followed.registers()
    followed.becomes("SUCCEEDED")
    followed.kfp.state.broken = [503, 502, 500]
    assert followed.wait().exit_code == 0
    assert sum("waiting for Kubeflow" in event for event in followed.events) == 1
    assert followed.events[-1] == "Kubeflow answers again"


def test_a_token_that_expires_while_waiting_is_the_users_to_mend(follow):
    followed = follow()
    followed.kfp.state.tokens = ("another",)
    with pytest.raises(UserError, match="401"):
        followed.wait(retries=3)


def test_a_store_that_can_not_be_read_from_here_leaves_kubeflows_word(follow, monkeypatch):
    followed = follow()
    monkeypatch.setattr(followed.run, "store_uri", "nowhere://bucket")
    followed.becomes("SUCCEEDED", register="SUCCEEDED")
    found = followed.wait()
    assert (found.run_id, found.state, found.exit_code) == (None, "succeeded", 0)
    assert "the store can't be read from here" in found.reason


def test_the_looks_see_the_run_as_soon_as_it_is_registered(follow):
    followed = follow()
    seen = []

    def look(found, run):
        seen.append(run.id if run else None)
        if len(seen) == 2:
            followed.registers()
        if len(seen) == 4:
            followed.becomes("SUCCEEDED")

    followed.wait(look=look)
    assert seen[:2] == [None, None]
    assert seen[-1] == followed.run.id


def test_the_notebooks_wait_takes_what_submit_gave(follow):
    from podium import wait as follow_to_the_end

    followed = follow()
    followed.registers()
    followed.becomes("SUCCEEDED")
    address = Address(host=followed.kfp.host)
    assert follow_to_the_end(Submitted(followed.id, "demo", None, followed.run.store_uri, address)).exit_code == 0


def test_the_command_follows_to_the_verdict(kfp, podium, make_run, monkeypatch):
    """`podium submit --wait`: the store is where the run is, as prepare_data would have left it."""
    state, run = kfp.state, make_run("registered")
    monkeypatch.setattr("podium.pipelines.cli.submit._store", lambda store: store)
    monkeypatch.setattr("podium.pipelines.wait.POLL_SECONDS", 0.05)

    def cluster():
        deadline = time.monotonic() + 60
        while not state.runs and time.monotonic() < deadline:
            time.sleep(0.02)
        (run_id,) = state.runs
        note_run(run.store, run_id, run.id)
        state.set_run(run_id, "RUNNING", {"Prepare data": "SUCCEEDED"})
        state.set_run(run_id, "SUCCEEDED", {"Register": "SUCCEEDED"})

    thread = threading.Thread(target=cluster)
    thread.start()
    found = podium("submit", "param-allocation", "--store", run.store_uri, "--host", kfp.host, "--wait")
    thread.join()
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[-1].startswith("winner: rate-0.01 · proven")
    assert "register: succeeded" in found.stderr.lower()
