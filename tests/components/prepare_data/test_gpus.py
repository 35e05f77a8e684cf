import pytest

from podium.components.prepare_data.gpus import gpu_notes, gpu_problems, study_gpus
from podium.components.study.load import load_study


@pytest.fixture
def study(two_stages):
    return load_study(two_stages.replace("prove:\n", "prove:\n    resources: {gpus_per_trial: 2, parallel: 3}\n"))


def test_a_stages_pod_takes_the_gpus_of_all_its_trials_and_none_where_each_trial_is_a_job(study):
    assert study_gpus(study, "process") == {"screen": 0, "prove": 6}
    assert study_gpus(study, "process", parallel=1) == {"screen": 0, "prove": 2}
    assert study_gpus(study, "job") == {"screen": 0, "prove": 0}


@pytest.mark.parametrize("gpus", ["", "screen=0,prove=6", "screen=,prove=6", "screen=0,prove= 6"])
def test_inputs_that_say_what_the_study_says_are_taken(study, gpus):
    assert gpu_problems(study, gpus, "process") == []


def test_every_input_that_contradicts_the_study_is_named_with_the_count_it_must_have(study):
    problems = [str(problem) for problem in gpu_problems(study, "screen=1,prove=four", "process")]
    assert len(problems) == 2
    assert "stage screen: must be 0" in problems[0]
    assert "got '1'" in problems[0]
    assert "stage prove: must be 6 (the study asks for 2 per trial × 3 at once), got 'four'" in problems[1]


def test_under_launcher_job_the_pods_input_is_0(study):
    assert gpu_problems(study, "screen=0,prove=0", "job") == []
    (problem,) = gpu_problems(study, "screen=0,prove=6", "job")
    assert "must be 0 (with launcher job" in str(problem)


@pytest.mark.parametrize("gpus", ["screen=0", "screen=0,prove=6,extra=1"])
def test_a_study_that_needs_another_graph_is_refused_in_words(study, gpus):
    (problem,) = gpu_problems(study, gpus, "process")
    assert "its stages are screen → prove" in str(problem)
    assert f"this pipeline's graph has {' → '.join(part.partition('=')[0] for part in gpus.split(','))}" in str(problem)
    assert "compile the study again" in str(problem)


def test_a_count_left_as_compiled_does_not_contradict_an_edited_study_that_can_run_on_it(study):
    left = "screen=0,prove=4"
    assert gpu_problems(study, left, "process", compiled=left) == []
    (note,) = gpu_notes(study, left, "process", compiled=left)
    assert "stage prove: its pod has 4 GPUs, as the pipeline was compiled, and the study would use 6" in note
    assert gpu_notes(study, "screen=0,prove=6", "process", compiled=left) == []


def test_a_stage_on_the_cpu_runs_in_a_pod_that_was_compiled_with_gpus(study):
    left = "screen=8,prove=6"
    assert gpu_problems(study, left, "process", compiled=left) == []
    assert "stage screen: its pod has 8 GPUs" in gpu_notes(study, left, "process", compiled=left)[0]


def test_a_count_that_somebody_changed_must_be_the_studys(study):
    compiled = "screen=0,prove=4"
    assert gpu_problems(study, "screen=0,prove=6", "process", compiled=compiled) == []
    (problem,) = gpu_problems(study, "screen=0,prove=5", "process", compiled=compiled)
    assert "stage prove: must be 6" in str(problem)


def test_a_count_left_as_compiled_that_is_too_few_for_one_trial_is_refused(study):
    left = "screen=0,prove=1"
    (problem,) = gpu_problems(study, left, "process", compiled=left)
    assert "stage prove: must be 6 (the study asks for 2 per trial × 3 at once), got '1'" in str(problem)


def test_switching_the_launcher_to_job_needs_the_counts_set_to_0(study):
    left = "screen=0,prove=6"
    (problem,) = gpu_problems(study, left, "job", compiled=left)
    assert "must be 0 (with launcher job" in str(problem)
