"""What an installation sets reaches the compiled pipeline, and a typo in it is refused."""

import pytest
import yaml

from podium.components.kfp_components import VERSION
from podium.components.study.load import load_study
from podium.pipelines.compile import Options, pipeline_documents, study_pipeline
from podium.pipelines.installation import Installation, load_installation
from podium.trainer.trial.errors import UserError

SITE = """
store: s3://bucket/experiments
launcher: process
image_registry: registry.example/acme
image_pull_policy: IfNotPresent
image_pull_secrets: [pull-a, pull-b]
secret: my-credentials
config: my-config
shared_memory: 16Gi
gpu_classes:
  l40s:
    resource: nvidia.com/mig-1g.10gb
    node_selector: {gpu: l40s}
    tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
"""


@pytest.fixture
def compiled(tmp_path):
    def make(site, **options):
        path = tmp_path / "site.yaml"
        path.write_text(site)
        study = load_study("param-allocation")
        options = Options(installation=load_installation(str(path)), **options)
        return pipeline_documents(study_pipeline(study, text="name: x\n", options=options))

    return make


def pods(spec, platform):
    """Every pod's container and settings, by its executor's name."""
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name: (each["container"], settings[name]) for name, each in spec["deploymentSpec"]["executors"].items()}


def defaults(spec):
    return {name: each["defaultValue"] for name, each in spec["root"]["inputDefinitions"]["parameters"].items()}


def test_images_pull_settings_and_shared_memory_reach_every_pod_that_they_are_for(compiled):
    spec, platform = compiled(SITE)
    for name, (container, settings) in pods(spec, platform).items():
        trains = name.startswith(("exec-train", "exec-shakedown", "exec-evaluate"))
        kind = "trainer" if trains else "steps"
        assert container["image"] == f"registry.example/acme/podium/python-{kind}:{VERSION}"
        assert settings["imagePullPolicy"] == "IfNotPresent"
        pull = [each["imageNameParameter"]["runtimeValue"]["constant"] if "imageNameParameter" in each
                else each["secretName"] for each in settings["imagePullSecret"]]  # fmt: skip
        assert pull == ["pull-a", "pull-b"]
        if trains:
            assert settings["emptyDirMounts"][0]["sizeLimit"] == "16Gi"
            assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/mig-1g.10gb"


def test_a_gpu_class_places_the_stages_that_name_it_and_no_others(compiled):
    found = defaults(compiled(SITE)[0])
    assert found["node_selector_ranking"] == found["node_selector_finals"] == {"gpu": "l40s"}
    assert found["tolerations_ranking"][0]["key"] == "nvidia.com/gpu"
    found = defaults(compiled(SITE.replace("  l40s:", "  h100:"))[0])
    assert found["node_selector_ranking"] == {}
    assert found["tolerations_finals"] == []


def test_store_names_and_launcher_are_the_inputs_defaults_and_an_option_goes_over_them(compiled):
    found = defaults(compiled(SITE)[0])
    assert (found["store"], found["secret"], found["config"]) == (
        "s3://bucket/experiments", "my-credentials", "my-config"
    )  # fmt: skip
    assert (found["cpu_ranking"], found["memory_ranking"], found["gpus_ranking"]) == ("24", "48Gi", "6")
    found = defaults(compiled(SITE, store="s3://other/p", launcher="job")[0])
    assert (found["store"], found["launcher"]) == ("s3://other/p", "job")
    assert (found["cpu_ranking"], found["memory_ranking"], found["gpus_ranking"]) == ("250m", "512Mi", "0")


def test_a_full_image_name_goes_over_the_registry(compiled):
    spec, _ = compiled(SITE + "steps_image: other.example/python-steps@sha256:0\n")
    images = {each["container"]["image"] for each in spec["deploymentSpec"]["executors"].values()}
    assert images == {"other.example/python-steps@sha256:0", f"registry.example/acme/podium/python-trainer:{VERSION}"}


def test_no_installation_leaves_everything_to_the_cluster(compiled, monkeypatch):
    monkeypatch.delenv("PODIUM_INSTALLATION", raising=False)
    assert load_installation() == Installation()
    spec, platform = compiled("{}")
    for _, settings in pods(spec, platform).values():
        assert not {"imagePullPolicy", "imagePullSecret"} & set(settings)


def test_the_environment_names_an_installation(tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text("store: s3://bucket/here\n")
    monkeypatch.setenv("PODIUM_INSTALLATION", str(tmp_path / "site.yaml"))
    assert load_installation().store == "s3://bucket/here"


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("stor: s3://bucket/x", "stor: unknown field"),
        ("launcher: pod", "launcher"),
        ("gpu_classes: {l40s: {selector: {}}}", "gpu_classes.l40s.selector: unknown field"),
        ("- a list", "a mapping of fields"),
        ("a: [", "line"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, site, words):
    (tmp_path / "site.yaml").write_text(site)
    with pytest.raises(UserError, match=words):
        load_installation(str(tmp_path / "site.yaml"))


def test_the_command_compiles_with_another_registry(podium_cli, tmp_path):
    out = tmp_path / "p.yaml"
    made = podium_cli("compile", "param-allocation", "-o", out, "--image-registry", "registry.example")
    assert made.exit_code == 0, made.output
    spec, _ = yaml.safe_load_all(out.read_text(encoding="utf-8"))
    images = {each["container"]["image"] for each in spec["deploymentSpec"]["executors"].values()}
    assert images == {f"registry.example/podium/python-{kind}:{VERSION}" for kind in ("steps", "trainer")}
