"""A retry through Kubeflow's API redoes nothing: with the pipeline's real steps, killed while a stage trains."""

import os
import signal
import threading
import time

import pytest

from podium.components.study.layout import note_run
from podium.components.study.load import load_study
from podium.components.study.run import Run
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import open_kubeflow
from podium.pipelines.local import start_local
from podium.pipelines.wait import wait

SECONDS = 400.0


def until(what, condition):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def results(run):
    """Trial with a result → when its model was written: the conductor adds the costs to the result itself."""
    folders = [key.removesuffix("/result.json") for key in run.storage.list("trials") if key.endswith("/result.json")]
    models = {folder: run.storage.local_path(f"{folder}/checkpoints/final-model.safetensors") for folder in folders}
    return {folder: path.stat().st_mtime_ns for folder, path in models.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_retry_goes_on_where_the_lost_step_was_and_redoes_nothing_that_is_finished(kfp, study, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    state = kfp.state
    run = Run.create(str(tmp_path / "store"), load_study(str(study)), "full", None, study.read_text())
    with open_kubeflow(Address(host=kfp.host)) as kubeflow:
        kubeflow_run = kubeflow.create_run(
            "demo",
            experiment_id=kubeflow.experiment(kfp.study),
            pipeline={"pipeline_spec": {"pipelineInfo": {"name": "demo"}}},
            parameters={"store": run.store_uri},
        )
    note_run(run.store, kubeflow_run, run.id)
    before, failed = {}, []

    def cluster():
        """What Kubeflow does with the run: the step's node is lost at the first result, then its retry goes through."""
        try:
            first = start_local(run)
            until("a first result", lambda: results(run))
            os.killpg(first.process.pid, signal.SIGKILL)
            first.wait(SECONDS)
            before.update(results(run))
            state.set_run(kubeflow_run, "FAILED", {"ranking: train": "FAILED"})
            until("a retry", lambda: state.retries)
            with start_local(run) as second:
                code = second.wait(SECONDS)
            state.set_run(kubeflow_run, "SUCCEEDED" if code == 0 else "FAILED")
        except Exception as error:  # noqa: BLE001  told by the test, which waits for the run
            failed.append(error)
            state.set_run(kubeflow_run, "CANCELED")

    thread = threading.Thread(target=cluster)
    thread.start()
    events = []
    with open_kubeflow(Address(host=kfp.host)) as kubeflow:
        found = wait(kubeflow, kubeflow_run, run.store_uri, retries=2, event=events.append, poll_seconds=0.2)
    thread.join()
    assert failed == []
    assert (found.exit_code, found.retries, found.state) == (0, 1, "succeeded"), events
    assert before, "nothing was finished when the step was lost"
    after = results(run)
    assert len(after) > len(before)
    assert {key: after[key] for key in before} == before
