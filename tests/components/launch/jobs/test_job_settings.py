"""The site's settings: defaults, every mistake at once, and what a study asks for that the site has not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from podium.components.kfp_components import TRAINER_IMAGE
from podium.components.launch.job_manifest import JobSettings, check_jobs, read_job_settings
from podium.components.study.run import Run
from podium.trainer.trial.errors import ConfigError, UserError


def test_nothing_has_to_be_set() -> None:
    settings = read_job_settings({})
    assert settings == JobSettings()
    assert settings.image == TRAINER_IMAGE
    assert (settings.secret, settings.secret_required) == ("podium-credentials", False)


def test_the_variable_goes_over_the_file_and_the_pipelines_priority_over_both(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text("image: a\npriority_class: low\n")
    assert read_job_settings({"PODIUM_JOBS_FILE": str(file)}).image == "a"
    both = {"PODIUM_JOBS_FILE": str(file), "PODIUM_JOBS": "image: b"}
    assert read_job_settings(both).image == "b"
    settings = read_job_settings({"PODIUM_JOBS_FILE": str(file), "PODIUM_PRIORITY_CLASS": "urgent"})
    assert (settings.image, settings.priority_class) == ("a", "urgent")


def test_what_is_stated_must_exist() -> None:
    settings = read_job_settings({"PODIUM_JOBS": "{secret: mine, config_map: podium-config}"})
    assert settings.secret_required
    assert settings.config_map_required
    assert read_job_settings({"PODIUM_JOBS": "secret: null"}).secret is None


def test_every_mistake_is_named_at_once_with_what_came() -> None:
    text = "{parallel: 0, shared_memory: lots, namespace: Not_A_Name, qeue: x, image_pull_policy: Sometimes}"
    with pytest.raises(ConfigError) as caught:
        read_job_settings({"PODIUM_JOBS": text})
    message = str(caught.value)
    assert message.startswith("5 problems in PODIUM_JOBS:")
    for words in (
        "parallel: must be greater than 0, got 0",
        "shared_memory: must be a Kubernetes quantity such as 500m, 8Gi or 2, got 'lots'",
        "namespace: must be a Kubernetes name (lower-case letters, digits, - and .), got 'Not_A_Name'",
        "qeue: unknown field",
        "image_pull_policy: must be 'Always', 'IfNotPresent' or 'Never', got 'Sometimes'",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PODIUM_JOBS": "[a, b]"}, r"PODIUM_JOBS: must be a mapping of settings, got \['a', 'b'\]"),
        ({"PODIUM_JOBS": "{a: [}"}, "PODIUM_JOBS, line 1, column 6: while parsing"),
        ({"PODIUM_JOBS_FILE": "/no/such/file"}, "PODIUM_JOBS_FILE: '/no/such/file' can't be read: No such file"),
    ],
)
def test_what_is_no_mapping_is_refused_in_words(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_job_settings(environment)


def test_a_study_that_the_site_cannot_serve_is_refused_before_anything_runs(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_run().study
    resources = study.stages["first"].resources.model_copy(update={"gpus_per_trial": 1, "gpu_class": "h100"})
    stage = study.stages["first"].model_copy(update={"resources": resources})
    asking = study.model_copy(update={"stages": {"first": stage}})
    monkeypatch.setenv("PODIUM_JOBS", "gpu_classes: {a100: {node_selector: {gpu: a100}}}")
    with pytest.raises(UserError) as caught:
        check_jobs(asking, "runs")
    assert [str(problem) for problem in caught.value.problems] == [
        "--store: must be s3://bucket/prefix with launcher job, since pods can't reach a folder, got runs",
        "stages.first.resources.gpu_class: must be a class that PODIUM_JOBS names under gpu_classes (a100), got 'h100'",
    ]
    monkeypatch.setenv("PODIUM_JOBS", "gpu_classes: {h100: {}}")
    check_jobs(asking, "s3://bucket/store")
