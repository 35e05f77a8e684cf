"""What a person edits in the browser runs on the same graph; what needs another one is refused in words."""

import re

import pytest
import yaml

from podium.components.prepare_data.gpus import gpu_problems
from podium.components.study.load import load_study, other_graphs, read_study_text
from podium.pipelines.compile import check_graph, compile_study, graph_stages
from podium.trainer.trial.errors import UserError

NAME = "param-allocation"


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """The pipeline of the shipped study as it is uploaded: its file, and the inputs of the form in the browser."""
    path = tmp_path_factory.mktemp("graph") / "pipeline.yaml"
    compile_study(load_study(NAME), path, text=read_study_text(NAME)[0])
    spec = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    return path, {name: each["defaultValue"] for name, each in inputs.items()}


def runs(inputs, text, profile="full"):
    """What prepare_data finds wrong with these inputs, as the graph joins them."""
    study = load_study(text, profile=profile)
    stages = graph_stages(NAME)
    gpus = ",".join(f"{stage}={inputs[f'gpus_{stage}']}" for stage in stages)
    return study, gpu_problems(study, gpus, inputs["launcher"], compiled=gpus)


def edited(text, *changes):
    for pattern, new in changes:
        text, count = re.subn(pattern, new, text, count=1)
        assert count == 1, pattern
    return text


@pytest.mark.parametrize(
    ("changes", "profile"),
    [
        ([(r"seeds: 3 #", "seeds: 5 #")], "full"),
        ([(r"parallel: 6", "parallel: 8")], "full"),
        ([(r"values: \[0\.25, 0\.35, 0\.45\]", "values: [0.25, 0.3, 0.35, 0.45]"),
          (r"names: \[emb25, emb35, emb45\]", "names: [emb25, emb30, emb35, emb45]")], "full"),
        ([], "smoke"),
    ],
    ids=["a seed count", "more at once", "a variant more", "a profile"],
)  # fmt: skip
def test_an_edit_in_the_browser_runs_on_the_same_graph_with_the_other_inputs_left_alone(uploaded, changes, profile):
    path, inputs = uploaded
    study, problems = runs(inputs, edited(inputs["study"], *changes), profile)
    assert problems == []
    check_graph(study, str(path))


def test_the_edited_study_compiles_to_the_same_graph(uploaded, tmp_path):
    path, inputs = uploaded
    text = edited(inputs["study"], (r"seeds: 3 #", "seeds: 5 #"))
    again = compile_study(load_study(text), tmp_path / "again.yaml", text=text)
    first, second = (next(yaml.safe_load_all(each.read_text(encoding="utf-8"))) for each in (path, again))
    for spec in (first, second):
        spec["root"]["inputDefinitions"]["parameters"].pop("study")
    assert first == second


def test_a_profile_with_other_stages_needs_another_graph_and_says_which(uploaded):
    path, inputs = uploaded
    study, problems = runs(inputs, inputs["study"], "full-sweep")
    assert any("its stages are finals (profile full-sweep)" in str(problem) for problem in problems)
    with pytest.raises(UserError, match=r"this pipeline's graph has ranking → finals.*podium upload STUDY"):
        check_graph(study, str(path))
    assert other_graphs(NAME) == {"full-sweep": ["finals"]}


def test_a_study_whose_graph_another_shipped_pipeline_has_is_sent_there():
    text = edited(read_study_text(NAME)[0], (r"name: param-allocation", "name: mine"))
    with pytest.raises(UserError, match="run it by the pipeline param-allocation"):
        _refuse(load_study(text))


def _refuse(study):
    from podium.components.study.load import graph_problems

    problems = graph_problems(study, ["screen"])
    raise UserError(problems)


def test_plan_refuses_a_study_that_does_not_fit_the_graph(uploaded, podium_cli):
    path, _ = uploaded
    assert podium_cli("plan", NAME, "--profile", "smoke", "--pipeline", path).exit_code == 0
    assert podium_cli("plan", NAME, "--pipeline", NAME).exit_code == 0
    noted = podium_cli("plan", NAME, "--profile", "full-sweep")
    assert "profile full-sweep has a graph of its own (finals)" in noted.stdout
    refused = podium_cli("plan", NAME, "--profile", "full-sweep", "--pipeline", path)
    assert refused.exit_code == 2
    assert "needs another one" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(("content", "words"), [("a: [", "--pipeline"), ("pipelineInfo: {name: x}\n", "no pipeline")])
def test_a_file_that_is_no_pipeline_of_ours_is_refused(podium_cli, tmp_path, content, words):
    (tmp_path / "p.yaml").write_text(content)
    refused = podium_cli("plan", NAME, "--pipeline", tmp_path / "p.yaml")
    assert refused.exit_code == 2
    assert words in refused.stderr
