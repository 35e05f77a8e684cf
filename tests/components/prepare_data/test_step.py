import json
from pathlib import Path

import pytest

from podium.components.prepare_data.step import prepare
from podium.components.study.run import Run
from podium.trainer.trial.errors import DataError, UserError
from podium.trainer.trial.storage import open_storage


@pytest.fixture(autouse=True)
def mlflow_in(tmp_path, monkeypatch):
    monkeypatch.setenv("PODIUM_MLFLOW_URI", "http://localhost:1")  # not asked: only a SQLite file is made here


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def call(study, store, *, profile="full", budget="", gpus="", launcher="process", selection=""):
    return prepare(study, profile, store, budget, gpus, launcher, selection)


def everything(store):
    return {path: path.read_bytes() for path in sorted(Path(store).rglob("*")) if path.is_file()}


def test_a_study_becomes_a_run_with_its_data_and_twice_is_as_once(two_stages, store):
    run_id = call(two_stages, store, gpus="screen=0,prove=0")
    run = Run.open(store, run_id)
    assert run.registered.submitted == two_stages
    assert [entry.key for entry in run.ledger.entries("run_started")] == [run_id]
    for variant in run.stage_variants("screen"):
        assert open_storage(run.dataset_uri(variant)).exists("manifest.json")
    before = everything(store)
    assert call(two_stages, store, gpus="screen=0,prove=0") == run_id
    assert everything(store) == before


def test_a_study_given_by_its_uri_is_the_same_run(two_stages, store, tmp_path):
    (tmp_path / "study.yaml").write_text(two_stages)
    uri = (tmp_path / "study.yaml").as_uri()
    assert call(uri, store) == call(two_stages, store)


def test_a_budget_given_as_input_is_part_of_the_study(two_stages, store):
    run_id = call(two_stages, store, budget="$12.50")
    assert Run.open(store, run_id).study.budget.usd == 12.5
    assert run_id != call(two_stages, store)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget": "-3"}, "budget: must be more than 0 dollars, got '-3'"),
        ({"budget": "much"}, "budget: must be an amount"),
        ({"launcher": "slurm"}, "launcher: must be one of process, job, got 'slurm'"),
        ({"selection": "{"}, "selection: must be JSON"),
        ({"selection": json.dumps({"stage": ["screen"]})}, "selection: must be a JSON object of stages"),
        ({"selection": json.dumps({"stages": ["final"]})}, "no 'final'|unknown|final"),
        ({"gpus": "screen=2,prove=0"}, "GPU input of stage screen: must be 0"),
        ({"profile": "tiny"}, "no profile 'tiny'"),
    ],
)
def test_an_input_that_is_wrong_is_refused_in_words_and_nothing_is_written(two_stages, store, wrong, words):
    with pytest.raises(UserError, match=words):
        call(two_stages, store, **wrong)
    assert everything(store) == {}


def test_all_wrong_inputs_are_named_at_once(two_stages, store):
    with pytest.raises(UserError) as caught:
        call(two_stages, store, budget="much", launcher="slurm", gpus="screen=1,prove=1")
    assert len(caught.value.problems) == 4


def test_a_study_that_is_not_at_its_uri_is_said_so(store, tmp_path):
    with pytest.raises(UserError, match="no file at file://"):
        call((tmp_path / "nothing.yaml").as_uri(), store)


def test_a_split_shorter_than_one_sequence_is_refused(two_stages, store):
    with pytest.raises(DataError, match="at least one block of 5001 tokens"):
        call(two_stages.replace("sequence_length: 32", "sequence_length: 5000"), store)
