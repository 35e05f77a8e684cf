"""A user's own Python file travels with the study that names it."""

from __future__ import annotations

import pytest

from podium.components.study.design import variants
from podium.components.study.layout import MODULES
from podium.components.study.load import dump_study, load_study
from podium.components.study.run import Run
from podium.components.study.trials import variant_config
from podium.trainer.builtin.config import sha256_of_text
from podium.trainer.trial.errors import ConfigError

CODE = "def build_model(config):\n    raise NotImplementedError\n"
STUDY = """
name: own
question: whether our own model is better
data: {corpus: {source: files, path: CORPUS}, vocab_size: 2048}
config:
  model: {d_model: 32, n_layers: 1, n_heads: 2, d_ff: 64}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 1e-3}
  batch: {sequences: 4}
  evaluation: {every_steps: 5, sequences: 8}
  checkpoint: {every_steps: 10}
variants:
  baseline: {}
  mine:
    modification: architecture
    overrides: {extension: {module: code/mine.py}}
stages:
  only: {budget: {steps: 10}, promotion: {policy: best_mean, metric: final_val_loss}}
"""


@pytest.fixture
def study_file(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(CODE)
    (tmp_path / "text.txt").write_text("word " * 20_000)
    path = tmp_path / "own.yaml"
    path.write_text(STUDY.replace("CORPUS", str(tmp_path / "text.txt")))
    return path


def test_the_file_is_part_of_the_study_and_of_what_its_trials_are(study_file, tmp_path):
    study = load_study(str(study_file))
    base, mine = (variant_config(study, "only", variant) for variant in variants(study))
    assert base.extension is None
    assert (mine.extension.module, mine.extension.text) == ("mine.py", CODE)
    again = load_study(dump_study(study))  # as a pod gets it, where there is no such file
    assert again == study
    first = Run.create(f"file://{tmp_path}/store", study)
    assert first.storage.read_text(f"{MODULES}/{sha256_of_text(CODE)}.py") == CODE
    (tmp_path / "code" / "mine.py").write_text(CODE + "# changed\n")
    assert Run.create(f"file://{tmp_path}/store", load_study(str(study_file))).id != first.id


def test_a_file_that_is_not_there_is_named(study_file, tmp_path):
    (tmp_path / "code" / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"overrides\.extension\.module: must be a file .*No such file"):
        load_study(str(study_file))
