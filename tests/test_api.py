"""`from podium import …`: what notebooks and scripts use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import podium
from podium import Study, compare, compile, plan  # noqa: A004
from podium.trainer.trial.errors import UserError


def test_importing_podium_loads_nothing_else():
    code = (
        "import sys; import podium; "
        "assert not {'numpy', 'yaml', 'pydantic', 'torch', 'kfp', 'podium.components'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        podium.trian  # noqa: B018


def test_every_public_name_is_found_and_the_type_stub_says_the_same():
    stub = ast.parse(Path(podium.__file__).with_suffix(".pyi").read_text())
    typed = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(typed) == set(podium.__all__)
    for name in podium.__all__:
        assert getattr(podium, name).__module__ == typed[name]
        assert getattr(podium, name).__doc__


def test_a_study_is_loaded_planned_and_compiled(tmp_path):
    study = Study.load("param-allocation", profile="smoke", budget_usd=3)
    assert (study.profile, study.budget.usd) == ("smoke", 3)
    assert plan(study).trials > 6
    by_object = yaml.safe_load_all(compile(study, tmp_path / "a.yaml").read_text(encoding="utf-8"))
    by_name = yaml.safe_load_all(
        compile("param-allocation", tmp_path / "b.yaml", profile="smoke").read_text(encoding="utf-8")
    )
    first, second = (next(each)["root"]["inputDefinitions"]["parameters"] for each in (by_object, by_name))
    assert first["profile"]["defaultValue"] == second["profile"]["defaultValue"] == "smoke"
    assert Study.load(first["study"]["defaultValue"], profile="smoke") == study
    assert Study.load(second["study"]["defaultValue"], profile="smoke", budget_usd=3) == study


def test_comparing_gives_welchs_test_as_scipy_does(tmp_path):
    a, b = [3.28, 3.29, 3.27], [3.25, 3.26, 3.27, 3.24]
    (tmp_path / "a.txt").write_text("3.28\n3.29\n3.27\n")
    (tmp_path / "b.json").write_text("[3.25, 3.26, 3.27, 3.24]")
    found = compare(str(tmp_path / "a.txt"), str(tmp_path / "b.json"))
    assert found.difference == pytest.approx(-0.025)
    from scipy import stats

    expected = stats.ttest_ind(b, a, equal_var=False)
    assert (found.t, found.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.to_json()["b"]["n"] == 4
    assert "-0.0250" in str(found)


def test_one_figure_a_side_is_described_and_not_tested():
    found = compare([3.0], [2.9, 3.1])
    assert (found.t, found.p, found.interval) == (None, None, None)
    assert found.to_json()["a"]["sd"] is None


@pytest.mark.parametrize("wrong", [[], [float("nan")]])
def test_what_has_no_figures_is_refused(wrong):
    with pytest.raises(UserError, match="at least one finite number"):
        compare([3.0, 3.1], wrong)


def test_a_file_without_numbers_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("three\n")
    with pytest.raises(UserError, match="one number a line"):
        compare(str(tmp_path / "a.txt"), [3.0])


TINY = """
name: tiny
question: Does the whole ladder work from Python?
data: {{corpus: {{source: files, path: {corpus}}}, vocab_size: 300}}
config:
  model: {{family: transformer, d_model: 8, n_layers: 1, n_heads: 2, d_ff: 16}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 0.003}}
  batch: {{sequences: 2}}
  evaluation: {{every_steps: 5, sequences: 8}}
  checkpoint: {{every_steps: 5}}
  runtime: {{device: cpu, threads: 1}}
design: list
variants:
  baseline: {{}}
  fast: {{overrides: {{optimizer.learning_rate: 0.03}}}}
stages:
  prove:
    budget: {{steps: 20}}
    seeds: 2
    min_seeds: 2
    proof: true
    resources: {{parallel: 2}}
    promotion: {{policy: best_mean}}
shakedown: {{steps: 8}}
evaluation: {{smallbench: null, latency: false, throughput: false}}
"""


@pytest.mark.slow
def test_a_study_runs_from_python_to_a_registered_model_and_again_does_nothing(tmp_path):
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join(f"Paragraph {n} of a corpus, with {n * n} words in it." for n in range(300))
    )
    study = Study.load(TINY.format(corpus=tmp_path / "corpus.txt"))
    finished = podium.run(study, store=str(tmp_path / "store"))
    assert finished.state() == "succeeded"
    assert finished.status()["champion"]["variant"] == "fast"
    assert finished.read_json("evaluation/fast/metrics.json")["declared_dev_loss"] == pytest.approx(
        finished.status()["champion"]["value"], abs=1e-6
    )
    entries = [(entry.kind, entry.key) for entry in finished.ledger.entries()]
    again = podium.run(study, store=str(tmp_path / "store"))
    assert again.id == finished.id
    assert [(entry.kind, entry.key) for entry in again.ledger.entries()] == entries
    assert compare(finished, again).difference == 0
