"""Uploading, against an API of Kubeflow's shapes; with PODIUM_KFP_HOST against a real one."""

import threading

import pytest
import yaml

from podium import upload
from podium.components.study.load import load_study
from podium.pipelines.compile import Options, study_pipeline
from podium.pipelines.kubeflow.address import Address
from podium.pipelines.kubeflow.api import KubeflowError, open_kubeflow
from podium.pipelines.submit import content_hash
from podium.trainer.trial.errors import UserError

STUDY = """
name: {name}
question: Is a study uploaded once?
data: {{vocab_size: 512, corpus: {{source: builtin}}}}
config:
  model: {{family: transformer, d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 1e-3}}
  batch: {{sequences: 4}}
  evaluation: {{every_steps: 5}}
  checkpoint: {{every_steps: 5}}
stages:
  ranking: {{budget: {{steps: 10}}, seeds: {seeds}, promotion: {{policy: always}}}}
variants:
  baseline: {{}}
"""


def text_of(kfp, seeds=1):
    return STUDY.format(name=kfp.study, seeds=seeds)


def versions_of(kfp):
    with open_kubeflow(Address(host=kfp.host)) as kubeflow:
        pipeline = kubeflow.pipeline(f"podium-{kfp.study}", display_name=kfp.study, description="")
        return [each.name for each in kubeflow.versions(pipeline)]


def test_uploading_twice_makes_one_version_and_a_changed_study_a_second(kfp):
    first = upload(text_of(kfp), kfp.host, store="s3://bucket/p")
    again = upload(text_of(kfp), kfp.host, store="s3://bucket/p")
    changed = upload(text_of(kfp, seeds=2), kfp.host, store="s3://bucket/p")
    assert [each.outcome for each in (first, again, changed)] == ["new version", "unchanged", "new version"]
    assert first.version == again.version != changed.version
    assert sorted(versions_of(kfp)) == sorted([changed.version, first.version])
    assert first.link.startswith(f"{kfp.host}/#/pipelines/details/")


def test_an_older_study_uploaded_again_says_that_a_newer_one_is_shown_first(kfp):
    assert kfp.state.versions == {}, "a real server orders versions by whole seconds"
    upload(text_of(kfp), kfp.host, store="s3://bucket/p")
    upload(text_of(kfp, seeds=2), kfp.host, store="s3://bucket/p")
    older = upload(text_of(kfp), kfp.host, store="s3://bucket/p")
    assert (older.outcome, older.newest) == ("unchanged", False)


def test_eight_uploads_at_once_make_one_version(kfp):
    outcomes = []

    def run():
        outcomes.append(upload(text_of(kfp), kfp.host, store="s3://bucket/p").outcome)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["new version"] + ["unchanged"] * 7
    assert len(versions_of(kfp)) == 1


def test_an_upload_that_loses_the_race_for_the_pipeline_takes_the_winners(kfp):
    upload(text_of(kfp), kfp.host, store="s3://bucket/p")
    kfp.state.late_conflict = True  # the pipeline is not listed once, and refused as a second one of its name
    assert upload(text_of(kfp), kfp.host, store="s3://bucket/p").outcome == "unchanged"
    assert len(kfp.state.pipelines) == 1


def test_what_is_uploaded_is_the_compiled_pipeline_with_names_that_people_read(kfp):
    upload("param-allocation", kfp.host, store="s3://bucket/p")
    (pipeline,) = kfp.state.pipelines.values()
    assert (pipeline["name"], pipeline["display_name"]) == ("podium-param-allocation", "param-allocation")
    assert pipeline["description"] == "Parameter allocation at 10M parameters"
    (package,) = kfp.state.packages.values()
    spec, platform = yaml.safe_load_all(package)
    assert spec["root"]["inputDefinitions"]["parameters"]["store"]["defaultValue"] == "s3://bucket/p"
    assert "kubernetes" in platform["platforms"]


def test_the_version_of_the_sdk_that_wrote_a_pipeline_does_not_make_it_another(kfp):
    study = load_study(text_of(kfp))
    made = [study_pipeline(study, text=text_of(kfp), options=Options()) for _ in range(3)]
    made[1].pipeline_spec.sdk_version = "kfp-9.9.9"
    made[2].pipeline_spec.root.input_definitions.parameters["store"].default_value.string_value = "s3://other"
    first, other_sdk, other_store = (content_hash(each) for each in made)
    assert first == other_sdk != other_store


def test_a_server_that_fails_at_an_upload_is_quoted(kfp):
    class Fuse(list):
        """The requests so far: after that for the upload itself the server is out of order once."""

        def append(self, request):
            super().append(request)
            if "upload_version" in request[1]:
                kfp.state.broken.append(500)

    kfp.state.requests = Fuse()
    with pytest.raises(KubeflowError, match=r"failed at the version .*: 500 .*\(out of order\)"):
        upload(text_of(kfp), kfp.host, store="s3://bucket/p")


def test_the_command_uploads_every_shipped_study_and_is_quiet_the_second_time(kfp, podium_cli):
    first = podium_cli("upload", "--all", "--host", kfp.host, "--store", "s3://bucket/p")
    assert first.exit_code == 0, first.output
    assert all("new version" in line or "unchanged" in line for line in first.stdout.splitlines())
    second = podium_cli("upload", "--all", "--host", kfp.host, "--store", "s3://bucket/p")
    assert second.exit_code == 0
    assert all(": unchanged 0." in line for line in second.stdout.splitlines()), second.stdout
    assert len(second.stdout.splitlines()) == len(first.stdout.splitlines())


def test_the_command_takes_studies_of_ones_own_beside_the_shipped_ones(kfp, podium_cli, tmp_path):
    (tmp_path / "mine.yaml").write_text(text_of(kfp))
    found = podium_cli("upload", tmp_path / "mine.yaml", "--host", kfp.host, "--json")
    assert found.exit_code == 0, found.output
    assert f'"study": "{kfp.study}"' in found.stdout


def test_a_command_that_names_no_study_is_refused(kfp, podium_cli):
    refused = podium_cli("upload", "--host", kfp.host)
    assert refused.exit_code == 2
    assert "name at least one study, or give --all" in refused.stderr


def test_a_kubeflow_that_is_starting_is_waited_for_and_one_that_is_not_there_is_not_for_ever(kfp, podium_cli, tmp_path):
    (tmp_path / "mine.yaml").write_text(text_of(kfp))
    kfp.state.broken = [503, 503]
    waited = podium_cli("upload", tmp_path / "mine.yaml", "--host", kfp.host, "--retry-for", "60")
    assert waited.exit_code == 0, waited.output
    away = podium_cli("upload", tmp_path / "mine.yaml", "--host", "http://127.0.0.1:9", "--retry-for", "0.1")
    assert away.exit_code == 2
    assert "http://127.0.0.1:9 can't be reached" in away.stderr


def test_uploading_imports_no_torch(kfp, tmp_path):
    import os
    import subprocess
    import sys

    code = "import sys; from podium.pipelines.cli.main import app; app(standalone_mode=False); "
    code += "assert 'torch' not in sys.modules and 'mlflow' not in sys.modules"
    (tmp_path / "mine.yaml").write_text(text_of(kfp))
    arguments = ["upload", str(tmp_path / "mine.yaml"), "--host", kfp.host]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['podium', *{arguments!r}]; {code}"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "new version" in done.stdout


def test_a_study_that_is_wrong_is_refused_before_anything_is_uploaded(kfp):
    with pytest.raises(UserError, match="seeds"):
        upload(text_of(kfp, seeds=-1), kfp.host)
