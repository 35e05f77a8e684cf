import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from podium.components.evaluate import step
from podium.components.evaluate.step import evaluate
from podium.components.launch.launcher import TaskEnd
from podium.components.select.step import select
from podium.components.study.run import finalists
from podium.trainer.trial.errors import PodiumError


@dataclass
class FakeLauncher:
    """Ends each task at once; `behaviour` is given the task and writes what its process would."""

    behaviour: object
    slots: int = 1
    started: list = field(default_factory=list)
    most_at_once: int = 0
    _running: list = field(default_factory=list)

    def start(self, task):
        self._running.append(task)
        self.most_at_once = max(self.most_at_once, len(self._running))
        self.started.append(task)

    def poll(self, timeout_seconds):
        task = self._running.pop()
        code = self.behaviour(task)
        return [TaskEnd(task, code, 2.0, ["last line"])]

    def waiting(self):
        return {}

    def close(self):
        pass


@pytest.fixture
def proven(two_stage_run, finish):
    """A run whose last verdict is written, with wide before the baseline; narrow did not get so far."""
    finish(two_stage_run, "screen", baseline=[3.0], wide=[2.5], narrow=[3.5])
    select(two_stage_run.id, two_stage_run.store_uri, "screen", "")
    finish(two_stage_run, "prove", baseline=[3.0, 3.01], wide=[2.5, 2.49])
    select(two_stage_run.id, two_stage_run.store_uri, "prove", "")
    return two_stage_run


@pytest.fixture
def launched(proven, monkeypatch):
    """Put a fake launcher in place; by default each evaluation writes its metrics."""

    def metrics(task):
        variant = task.name.partition("/")[2]
        proven.storage.write_json(f"evaluation/{variant}/metrics.json", {"evaluation_seconds": 2.0})
        return 0

    def use(behaviour=metrics):
        launcher = FakeLauncher(behaviour)
        monkeypatch.setattr(step, "open_launcher", lambda *_, **__: launcher)
        return launcher

    return use


def test_the_finalists_are_the_ranked_arms_best_first_each_by_its_first_seed(proven):
    found = finalists(proven)
    assert [(each.variant, each.trial.seed) for each in found] == [("wide", 52), ("baseline", 52)]
    assert found[0].model_uri(proven) == f"{proven.uri}/trials/prove/wide/seed-52/checkpoints/final-model.safetensors"


def test_each_finalist_is_measured_alone_and_paid_for(proven, launched):
    launcher = launched()
    assert evaluate(proven.id, proven.store_uri, "process", "0") == ["wide", "baseline"]
    assert launcher.most_at_once == 1
    entries = proven.ledger.entries("evaluation")
    assert [(entry.key, entry.data["cost_usd"], entry.data["status"]) for entry in entries] == [
        ("wide", 2.0, "completed"),
        ("baseline", 2.0, "completed"),
    ]


def test_what_is_measured_is_not_measured_again(proven, launched):
    launched()
    evaluate(proven.id, proven.store_uri, "process", "0")
    again = launched()
    assert evaluate(proven.id, proven.store_uri, "process", "0") == ["wide", "baseline"]
    assert again.started == []
    assert len(proven.ledger.entries("evaluation")) == 2


def test_an_evaluation_that_was_cut_off_before_its_entry_is_paid_for_all_the_same(proven, launched):
    proven.storage.write_json("evaluation/wide/metrics.json", {"evaluation_seconds": 7.0})
    launcher = launched()
    evaluate(proven.id, proven.store_uri, "process", "0")
    assert [task.name for task in launcher.started] == ["evaluation/baseline"]
    assert proven.ledger.find("evaluation", "wide").data["cost_usd"] == 7.0


def test_an_evaluation_that_fails_is_a_missing_measurement_and_the_others_go_on(proven, launched):
    def crash_of_wide(task):
        if task.name == "evaluation/wide":
            return 1
        proven.storage.write_json("evaluation/baseline/metrics.json", {"evaluation_seconds": 2.0})
        return 0

    launched(crash_of_wide)
    assert evaluate(proven.id, proven.store_uri, "process", "0") == ["baseline"]
    failed = proven.ledger.find("evaluation", "wide/failed-1")
    assert failed.data["log_tail"] == ["last line"]
    assert failed.data["cost_usd"] == 2.0, "what was lost is paid for too"
    launched(crash_of_wide)
    evaluate(proven.id, proven.store_uri, "process", "0")
    assert proven.ledger.find("evaluation", "wide/failed-2"), "each attempt is paid for"


def test_a_cancelled_run_ends_its_evaluation(proven, launched, monkeypatch):
    launcher = launched()
    launcher.poll = lambda timeout_seconds: []
    proven.storage.write_json("cancel.json", {})
    with pytest.raises(PodiumError, match="cancelled"):
        evaluate(proven.id, proven.store_uri, "process", "0")


def test_the_command_is_one_that_the_trainer_takes_and_says_what_the_study_declares(proven):
    task = step.evaluation_task(proven, finalists(proven)[0], devices=0)
    assert task.argv[:4] == [sys.executable, "-m", "podium.trainer", "evaluate"]
    flags = set(task.argv)
    assert {"--skip-smallbench", "--skip-latency", "--skip-throughput"} <= flags
    assert "--max-eval-batches" not in flags
    assert task.argv[task.argv.index("--output") + 1] == f"{proven.uri}/evaluation/wide"
    assert task.argv[task.argv.index("--threads") + 1] == "1"
    # the weights are made up here, so the trainer must get as far as refusing them
    ended = subprocess.run(task.argv, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "final-model" in ended.stderr
