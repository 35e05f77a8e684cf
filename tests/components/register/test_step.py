"""The registry is MLflow's own on SQLite, and the models are trained ones: a few steps of a few thousand weights."""

import importlib.metadata
import json
import math
import os
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest

from podium.components.launch.tracker import Sender
from podium.components.register import step
from podium.components.register.step import register
from podium.components.select.step import select
from podium.components.study.layout import note_run
from podium.components.study.load import load_study
from podium.components.study.run import Run, finalists
from podium.components.study.trials import datasets
from podium.trainer.builtin.data.prepare import prepare
from podium.trainer.trial.errors import PodiumError
from podium.trainer.trial.sync import artifact_root, client, initialise, mlflow_uri

TEXT = """
name: registered
question: Is the model in the registry the one of the verdict?
data: {{corpus: {{source: files, path: {corpus}}}, vocab_size: 300}}
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 0.003}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 5, sequences: 8}}
  checkpoint: {{every_steps: 10}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants:
  baseline: {{}}
  fast: {{overrides: {{optimizer.learning_rate: 0.03}}}}
stages:
  prove: {{budget: {{steps: 20}}, seeds: 2, min_seeds: 2, proof: true, promotion: {{policy: best_mean}}}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_corpus):
    """A store with a run whose trials are trained and whose verdict is written."""
    from podium.trainer.builtin.run import train

    store = tmp_path_factory.mktemp("trained")
    os.environ["PODIUM_MLFLOW_URI"] = f"sqlite:///{store}/mlflow.db"
    try:
        run = Run.create(str(store), load_study(TEXT.format(corpus=small_corpus)))
        for config in datasets(run.study).values():
            prepare(config, run.store)
        for trial in run.trials("prove"):
            folder = run.storage.child(trial.key.folder)
            folder.write_json("config.json", run.run_spec(trial).model_dump(mode="json"))
            train(run.run_spec(trial), folder, checkpoint_prefix="checkpoints/")
        with pytest.MonkeyPatch.context() as patch:  # a test sends the trials to MLflow itself, where it is about that
            patch.setattr("podium.components.select.step.catch_up", lambda _: None)
            select(run.id, run.store_uri, "prove", "")
        initialise(mlflow_uri(run.store_uri))
    finally:
        del os.environ["PODIUM_MLFLOW_URI"]
    return store


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, with a registry of its own."""
    store = tmp_path / "store"
    shutil.copytree(trained, store)
    monkeypatch.setenv("PODIUM_MLFLOW_URI", f"sqlite:///{store}/mlflow.db")
    return Run.open(str(store))


@pytest.fixture
def pyfunc(run):
    """MLflow at the run's registry; it warns of itself when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        import mlflow.pyfunc

        mlflow.set_tracking_uri(mlflow_uri(run.store_uri))
        mlflow.set_registry_uri(mlflow_uri(run.store_uri))
        yield mlflow.pyfunc


def registration(run):
    return json.loads(run.storage.read_text("registration.json"))


def with_verdict(run, **changes):
    verdict = run.verdict("prove")
    run.storage.write_json("verdicts/prove.json", verdict.model_copy(update=changes).model_dump(mode="json"))


def test_the_model_in_the_registry_gives_the_loss_that_the_verdict_states(run, pyfunc):
    uri = register(run.id, run.store_uri)
    record = registration(run)
    winner = run.verdict("prove").winner
    assert record["variant"] == winner == "fast"
    stated = next(row for row in run.verdict("prove").ranking if row.variant == winner).values[str(record["seed"])]
    assert record["value"] == record["loss"] == stated
    model = pyfunc.load_model(uri).unwrap_python_model()
    found = model.evaluate(record["dataset"])
    assert found["loss"] == pytest.approx(stated, abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(stated), rel=1e-6)


def test_a_text_is_scored_token_by_token_whatever_its_length(run, pyfunc):
    model = pyfunc.load_model(register(run.id, run.store_uri))
    texts = ["Paragraph 7 of a corpus", "Paragraph 7 of a corpus, with 49 words in it. " * 20, "", "é"]
    scores = model.predict(pd.DataFrame({"text": texts}))
    assert list(scores.columns) == ["loss", "tokens", "bits_per_byte"]
    tokenizer = model.unwrap_python_model().tokenizer
    assert list(scores["tokens"]) == [len(tokenizer.encode(text).ids) for text in texts]
    assert math.isnan(scores["loss"][2]), "an empty text has no loss"
    filled = scores.drop(index=2)
    sizes = [len(text.encode()) for text in texts if text]
    expected = filled["loss"] * filled["tokens"] / math.log(2) / sizes
    assert list(filled["bits_per_byte"]) == pytest.approx(list(expected))


def test_the_stored_model_is_code_and_weights_without_a_pickle_and_says_what_it_takes(run, pyfunc):
    from mlflow.models import get_model_info

    uri = register(run.id, run.store_uri)
    root = run.store.local_path("mlflow-artifacts")
    names = {path.name for path in root.rglob("*") if path.is_file()}
    assert {"served_model.py", "final-model.safetensors", "final-model.json", "tokenizer.json", "verdict.json"} <= names
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".bin"))}
    about = get_model_info(uri)
    assert about.signature.inputs.input_names() == ["text"]
    assert about.signature.outputs.input_names() == ["loss", "tokens", "bits_per_byte"]
    assert about.saved_input_example_info is not None
    stored = json.loads(next(root.rglob("verdict.json")).read_text())
    assert stored["winner"] == "fast"


def test_a_step_without_pytorch_registers_a_model_that_asks_for_what_trained_it(run, pyfunc, monkeypatch):
    """The step's image has none; here its metadata is hidden, and the trial says that it ran on another build."""

    def version(name, _found=importlib.metadata.version):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return _found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for trial in run.trials("prove"):
        key = f"{trial.key.folder}/result.json"
        result = json.loads(run.storage.read_text(key))
        result["versions"]["torch"] = "2.12.1+cu128"
        run.storage.write_json(key, result)
    uri = register(run.id, run.store_uri)
    needed = Path(pyfunc.get_model_dependencies(uri)).read_text().splitlines()
    assert "torch==2.12.1" in needed
    assert f"podium=={importlib.metadata.version('podium')}" in needed


def test_the_trainers_own_evaluate_finds_the_registered_model(run, tmp_path, monkeypatch):
    from podium.trainer.builtin.checkpoint import load_model
    from podium.trainer.builtin.evaluation.subject import locate_model

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    located = locate_model(register(run.id, run.store_uri), tmp_path / "scratch")
    (winner, *_) = finalists(run)
    assert load_model(located.path)[1] == winner.trial.config
    assert list(Path().iterdir()) == [], "MLflow makes no database of its own in the working directory"


def test_registering_twice_makes_one_version_also_when_the_first_attempt_was_cut_off(run):
    register(run.id, run.store_uri)
    first = registration(run)
    assert register(run.id, run.store_uri) == first["uri"]
    run.storage.delete("registration.json")  # as if killed just before its last write
    register(run.id, run.store_uri)
    assert registration(run) == first
    registry = client(mlflow_uri(run.store_uri))
    assert len(registry.search_model_versions("name = 'registered'")) == 1
    assert len(run.ledger.entries("registration")) == 1


def test_a_version_says_what_it_was_made_of_and_why_it_was_chosen(run):
    register(run.id, run.store_uri)
    registry = client(mlflow_uri(run.store_uri))
    tags = registry.get_model_version("registered", registration(run)["version"]).tags
    (winner,) = [each for each in finalists(run) if each.variant == "fast"]
    assert tags["podium.run_id"] == run.id
    assert tags["podium.study_hash"] == run.registered.study_hash
    assert tags["podium.fingerprint"] == winner.result.fingerprint
    assert tags["podium.data_fingerprint"] == winner.trial.dataset_uri.rpartition("/")[2]
    assert json.loads(tags["podium.verdict"])["winner"] == "fast"
    assert {"podium.image", "podium.commit", "podium.variant", "podium.seed"} <= set(tags)


def test_every_level_of_the_tree_in_mlflow_names_the_run_of_kubeflow_that_made_it(run):
    note_run(run.store, "9f6c", run.id)
    uri = mlflow_uri(run.store_uri)
    Sender(run.uri, "prove", "trials/prove", run.study.name, run.id, uri, artifact_root(run.store_uri)).send()
    register(run.id, run.store_uri)
    experiment = client(uri).get_experiment_by_name(run.study.name).experiment_id
    runs = {found.info.run_name: found for found in client(uri).search_runs([experiment])}
    assert {name: found.data.tags.get("kubeflow.run_id") for name, found in runs.items()} == dict.fromkeys(runs, "9f6c")
    trial, stage, top = runs["prove/fast/seed-42"], runs["prove"], runs[run.id]
    assert trial.data.tags["mlflow.parentRunId"] == stage.info.run_id
    assert stage.data.tags["mlflow.parentRunId"] == top.info.run_id
    version = client(uri).get_model_version("registered", registration(run)["version"])
    assert version.tags["kubeflow.run_id"] == "9f6c"


def test_only_what_is_proven_becomes_champion_and_what_it_displaces_is_recorded(run):
    registry = client(mlflow_uri(run.store_uri))
    with_verdict(run, proven=True, claim="proven", winner="baseline")
    assert register(run.id, run.store_uri) == "models:/registered@champion"
    first = registration(run)
    assert first["displaced"] is None
    with_verdict(run, proven=False, claim="candidate", winner="fast")
    run.storage.delete("registration.json")
    assert register(run.id, run.store_uri) == "models:/registered@candidate"
    aliases = registry.get_registered_model("registered").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1", "candidate": "2"}, (
        "a candidate leaves the champion be"
    )
    with_verdict(run, proven=True, claim="proven", winner="fast")
    run.storage.delete("registration.json")
    register(run.id, run.store_uri)
    difference = registration(run)["value"] - first["value"]
    displaced = {"version": "1", "run_id": run.id, "variant": "baseline", "value": repr(first["value"])}
    displaced["difference"] = difference
    assert registration(run)["displaced"] == displaced
    assert difference != 0
    run.storage.delete("registration.json")
    register(run.id, run.store_uri)
    assert registration(run)["displaced"] == displaced, "also when the first attempt was cut off after the alias"
    assert len(registry.search_model_versions("name = 'registered'")) == 2, "the displaced one is kept"


@pytest.mark.parametrize("decision", ["stop", "await"])
def test_nothing_is_registered_before_a_verdict_promotes(run, decision):
    with_verdict(run, decision=decision)
    with pytest.raises(PodiumError, match=f"nothing to register before the last verdict.*{decision}"):
        register(run.id, run.store_uri)


def test_a_registry_that_is_away_is_said_in_words_and_leaves_nothing_final(run, monkeypatch):
    def away(*_):
        raise ConnectionError("refused")

    monkeypatch.setattr(step, "client", away)
    with pytest.raises(PodiumError, match=r"could not be registered with MLflow at sqlite:.*ConnectionError: refused"):
        register(run.id, run.store_uri)
    assert not run.storage.exists("registration.json")
