"""From a command line to a RunSpec, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from podium.trainer.builtin.inputs import read_mapping, spec_from_flags
from podium.trainer.builtin.presets import PRESETS
from podium.trainer.trial.errors import ConfigError


@pytest.fixture
def config_file(tmp_path, tiny_config):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config().model_dump(mode="json", exclude_none=True)))
    return str(path)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_run(preset, markov_data):
    settings = ["model.vocab_size=16000"]
    config = spec_from_flags(None, preset, str(markov_data), {}, settings).config
    assert config.preset == preset
    assert config.model.dimensions
    assert config.steps >= config.evaluation.every_steps


def test_a_preset_takes_its_vocabulary_from_the_data(markov_data):
    assert spec_from_flags(None, "tiny", str(markov_data), {}, []).config.model.vocab_size == 64


def test_flags_and_settings_change_single_fields(config_file, markov_data):
    changes = {"seed": 7, "optimizer.learning_rate": 0.5, "max_tokens": "2560", "runtime.device": None}
    settings = ["optimizer.weight_decay=3e-2", "stop.patience.evaluations=2", "max_grad_norm=null"]
    spec = spec_from_flags(config_file, None, str(markov_data), changes, settings)
    assert (spec.config.seed, spec.config.optimizer.learning_rate, spec.config.steps) == (7, 0.5, 20)
    assert spec.config.optimizer.weight_decay == 0.03
    assert spec.config.stop.patience.evaluations == 2
    assert spec.config.max_grad_norm is None
    assert spec.config.runtime.device == "cpu"
    assert spec.dataset == f"file://{markov_data}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give --config or --preset"),
        ({"preset": "huge"}, "--preset must be one of tiny, 10m, nano, .*got 'huge'"),
        ({"config": "nowhere.yaml"}, "no such config file: nowhere.yaml"),
        ({"config": "OWN", "data": None}, "--data: required"),
        ({"config": "OWN", "settings": ["seed"]}, "--set takes field=value"),
        ({"config": "OWN", "settings": ["model.depth=3"]}, "model.depth: unknown field"),
        ({"config": "OWN", "settings": ["optimizer.learning_rate=fast"]}, "optimizer.learning_rate: .*got 'fast'"),
        ({"config": "OWN", "settings": ["seed.deep=1"]}, "seed.deep: must be a field of a section"),
        ({"config": "OWN", "settings": ["evaluation.every_steps=13"]}, "evaluation.every_steps: must be at most"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments, message, config_file, markov_data):
    given = {"config": None, "preset": None, "data": str(markov_data), "settings": [], **arguments}
    if given["config"] == "OWN":
        given["config"] = config_file
    with pytest.raises(ConfigError, match=message):
        spec_from_flags(given["config"], given["preset"], given["data"], {}, given["settings"])


@pytest.mark.parametrize("text", ["", "{}", "- 1\n", "a: [", "just words"])
def test_a_config_that_is_no_mapping_is_refused(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_mapping(str(tmp_path / "run.yaml"))


def test_a_config_is_read_as_a_study_is(tmp_path):
    (tmp_path / "run.yaml").write_text("optimizer: {learning_rate: 1e-3}\nname: no\n")
    assert read_mapping(str(tmp_path / "run.yaml")) == {"optimizer": {"learning_rate": 0.001}, "name": "no"}
    (tmp_path / "run.yaml").write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 2, column 1: 'seed' is given twice"):
        read_mapping(str(tmp_path / "run.yaml"))


def test_all_problems_are_named_at_once(config_file, markov_data):
    with pytest.raises(ConfigError) as caught:
        spec_from_flags(config_file, None, str(markov_data), {"seed": -1}, ["max_grad_norm=-1", "bach.sequences=2"])
    assert {problem.where for problem in caught.value.problems} == {"seed", "max_grad_norm", "bach"}


def test_the_command_line_imports_no_torch():
    code = "import sys, podium.trainer.builtin.cli\n"
    code += "assert not {'torch', 'mlflow', 'matplotlib', 'boto3'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
