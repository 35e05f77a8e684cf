"""The upload after install and upgrade, as a pod, against an API that speaks Kubeflow's shapes."""

from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

SHIPPED = {path.stem for path in (Path(__file__).parents[3] / "pipelines" / "studies").glob("*.yaml")}
OURS = """
name: ours
question: Does a study of one's own become a pipeline?
data: {corpus: {source: builtin, max_bytes: 500k}, vocab_size: 512}
config:
  model: {family: transformer, d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}
  data: {sequence_length: 32}
  optimizer: {learning_rate: 0.003}
  batch: {sequences: 2}
  evaluation: {every_steps: 5, sequences: 8}
  checkpoint: {every_steps: 10}
design: list
variants:
  baseline: {}
  fast: {overrides: {optimizer.learning_rate: 0.03}}
stages:
  prove:
    budget: {steps: 20}
    seeds: 2
    min_seeds: 2
    proof: true
    resources: {gpus_per_trial: 1, gpu_class: l40s}
    promotion: {policy: best_mean}
"""


CLASSES = {
    "l40s": {
        "nodeSelector": {"nvidia.com/gpu.product": "L40S"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
}


def versions(release):
    """Study → {name of a version: that version}."""
    state = release.kubeflow("stand-in/state")
    found = {pipeline["display_name"]: {} for pipeline in state["pipelines"]}
    names = {pipeline["pipeline_id"]: pipeline["display_name"] for pipeline in state["pipelines"]}
    for version in state["versions"]:
        of_study = found[names[version["pipeline_id"]]]
        assert version["name"] not in of_study, "no version is there twice"
        of_study[version["name"]] = version
    return found


def inputs(release, version):
    """Input → default, as the uploaded pipeline has them."""
    package = release.kubeflow(f"stand-in/packages/{version['pipeline_version_id']}")["package"]
    spec, _ = yaml.safe_load_all(package)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    return {name: each.get("defaultValue") for name, each in parameters.items()}


def test_every_shipped_study_is_a_pipeline_with_one_version(installed):
    found = versions(installed)
    assert set(found) == SHIPPED
    assert {len(each) for each in found.values()} == {1}


@pytest.fixture(scope="module")
def release(make_release):
    """One with a study of its own and a class of GPUs."""
    uploaded = {"studies": ["param-allocation"], "ownStudies": {"ours.yaml": OURS}}
    release = make_release("upload", {"gpuClasses": CLASSES, "upload": uploaded})
    release.install()
    return release


def test_an_upgrade_adds_a_version_where_content_changed_and_doubles_nothing(release):
    first = versions(release)
    assert {name: len(each) for name, each in first.items()} == {"param-allocation": 1, "ours": 1}
    (made,) = first["ours"].values()
    defaults = inputs(release, made)
    assert defaults["store"] == release.values["store"]["uri"]
    assert defaults["launcher"] == "job"
    assert (defaults["secret"], defaults["config"]) == ("podium-credentials", "podium-config")
    assert defaults["node_selector_prove"] == CLASSES["l40s"]["nodeSelector"]
    assert defaults["tolerations_prove"] == CLASSES["l40s"]["tolerations"]

    release.upgrade({"trials": {"parallel": 2}})
    assert versions(release) == first, "what no pipeline carries makes no version"

    more_seeds = {"upload": {"ownStudies": {"ours.yaml": OURS.replace("seeds: 2", "seeds: 3", 1)}}}
    release.upgrade(more_seeds)
    second = versions(release)
    assert second["param-allocation"] == first["param-allocation"]
    assert len(second["ours"]) == 2
    assert set(first["ours"]) < set(second["ours"])

    release.upgrade({})
    assert versions(release) == second, "back to the first content: its version is there"


def test_a_study_that_does_not_validate_fails_the_upgrade_and_its_log_says_why(release):
    before = versions(release)
    changes = {"upload": {"ownStudies": {"ours.yaml": OURS.replace("vocab_size", "vocabsize")}, "retrySeconds": 1}}
    with pytest.raises(AssertionError) as error:
        release.upgrade(changes)
    assert "post-upgrade hooks failed" in str(error.value)
    assert "vocabsize" in str(error.value)
    assert versions(release) == before
