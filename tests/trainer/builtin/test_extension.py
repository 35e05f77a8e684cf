"""A user's own module makes the model of a run: shipped as a file or imported, part of every identity."""

from __future__ import annotations

import json

import pytest
import yaml

from podium.trainer.builtin.checkpoint import load_model
from podium.trainer.builtin.config import sha256_of_text
from podium.trainer.builtin.inputs import spec_from_flags
from podium.trainer.builtin.models.build import build_run_model
from podium.trainer.builtin.run import train
from podium.trainer.trial.errors import ConfigError
from podium.trainer.trial.storage import open_storage

WIDE = '''
from torch import nn
from podium.trainer.builtin.models.transformer import Transformer


class Scaled(Transformer):
    """The family's, with a scale on the loss's gradient path."""

    def __init__(self, config, scale):
        super().__init__(config)
        self.extra = nn.Linear(4, 4, bias=False)
        self.scale = scale
        self.told = []

    def begin_step(self, step, steps, seed):
        self.told.append((step, steps, seed))


def build(config, scale=1.0):
    return Scaled(config.model, scale)
'''


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))


def extension(text=WIDE, **changes):
    return {"module": "wide.py", "factory": "build", "text": text, **changes}


def test_a_shipped_module_makes_trains_and_reloads_the_model(tmp_path, tiny_spec):
    spec = tiny_spec(extension=extension(options={"scale": 2.0}))
    result = train(spec, open_storage(str(tmp_path / "run")))
    plain = train(tiny_spec(), open_storage(str(tmp_path / "plain")))
    assert result.status == "completed"
    assert result.parameters.total == plain.parameters.total + 16
    model, config = load_model(tmp_path / "run" / "final-model.safetensors")
    assert type(model).__name__ == "Scaled"
    assert model.scale == 2.0
    assert config.extension.text == WIDE


def test_a_model_is_told_every_step(tiny_config, tmp_path, tiny_spec, monkeypatch):
    told = []
    module = build_run_model(tiny_config(extension=extension())).__class__
    monkeypatch.setattr(module, "begin_step", lambda self, *what: told.append(what))
    train(tiny_spec(extension=extension()), open_storage(str(tmp_path / "run")))
    assert told == [(step, 12, 42) for step in range(1, 13)]


def test_an_import_name_serves_where_the_image_has_the_module(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "a_lab_of_ours.py").write_text(WIDE)
    monkeypatch.syspath_prepend(tmp_path)
    model = build_run_model(tiny_config(extension={"module": "a_lab_of_ours", "factory": "build"}))
    assert type(model).__name__ == "Scaled"


def test_the_trainer_reads_the_file_beside_its_config(tmp_path, tiny_config, markov_data):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "wide.py").write_text(WIDE)
    fields = json.loads(tiny_config().model_dump_json(exclude_unset=True))
    fields["extension"] = {"module": "parts/wide.py", "factory": "build"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields))
    spec = spec_from_flags(str(tmp_path / "run.yaml"), None, str(markov_data), {}, [])
    assert spec.config.extension.module == "wide.py"
    assert spec.config.extension.text == WIDE
    assert spec.config.extension.sha256 == sha256_of_text(WIDE)
    (tmp_path / "parts" / "wide.py").unlink()
    with pytest.raises(ConfigError, match=r"must be a file in or below .*, got 'parts/wide.py': No such file"):
        spec_from_flags(str(tmp_path / "run.yaml"), None, str(markov_data), {}, [])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"module": "not a name"}, "must be an import name or a file that ends with .py, got 'not a name'"),
        ({"module": "wide.py"}, "the text of a shipped file must come with it, got none for 'wide.py'"),
        ({"module": "lab", "text": "x = 1"}, "text and sha256 are of a shipped file, not of an import name"),
        (extension(sha256="0" * 64), "text must have the sha256 beside it, got another for 'wide.py'"),
        (extension(factory="a b"), "factory must be a function's name, got 'a b'"),
    ],
)
def test_what_can_not_be_an_extension_is_refused(tiny_config, given, words):
    with pytest.raises(ConfigError) as caught:
        tiny_config(extension=given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (extension("x = 1"), "wide.py: must have a function 'build', got a module without one"),
        (extension("raise RuntimeError('no')"), "wide.py: can't be imported: RuntimeError: no"),
        (extension("def build(config):\n    return 3"), "wide.py: build must return an nn.Module, got int"),
        (extension("def build(config):\n    return config.nothing"), "wide.py: build failed: AttributeError"),
        ({"module": "no_such_module_anywhere"}, "no_such_module_anywhere: can't be imported: ModuleNotFoundError"),
    ],
)
def test_code_that_makes_no_model_is_the_users_error(tiny_config, given, words):
    with pytest.raises(ConfigError) as caught:
        build_run_model(tiny_config(extension=given))
    assert words in str(caught.value)
