import copy
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from podium.components.kfp_components import VERSION
from podium.components.study.load import load_study, read_study_text, shipped_studies
from podium.pipelines.compile import pipeline_documents, pipeline_yaml, study_pipeline
from podium.pipelines.ladder import CONFIG_KEYS, SECRET_KEYS, Defaults, build_ladder, input_suffixes, pipeline_name

GOLDEN = Path(__file__).parent.parent / "golden"
STAGES = ["screen", "validate", "prove"]
"""Regenerate the golden files with `PODIUM_UPDATE_GOLDEN=1 pytest tests/pipelines`, and read the difference."""


def compiled(stages, **defaults):
    text = pipeline_yaml(build_ladder("demo", stages, Defaults(**({"study": "name: demo\n"} | defaults))))
    spec, platform = yaml.safe_load_all(text)
    return spec, platform


def tasks_of(spec):
    """(task, executor) of every task that is a pod, by display name."""
    found = {}
    for component in [spec["root"], *spec["components"].values()]:
        for content in component.get("dag", {}).get("tasks", {}).values():
            executor = spec["components"][content["componentRef"]["name"]].get("executorLabel")
            if executor:
                found[content["taskInfo"]["name"]] = (content, executor)
    return found


def container_of(spec, executor):
    return spec["deploymentSpec"]["executors"][executor]["container"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_reference_has_its_input_in_the_group_around_it(count, dangling):
    assert dangling(*compiled([f"stage-{n}" for n in range(count)])) == []


def test_the_check_for_dangling_references_finds_one_of_each_kind(dangling):
    spec, platform = compiled(["screen", "prove"])

    def broken(change):
        changed = copy.deepcopy((spec, platform))
        change(*changed)
        return dangling(*changed)

    condition = "comp-condition-2"
    assert broken(
        lambda s, p: s["components"][condition]["inputDefinitions"]["parameters"].pop("pipelinechannel--store")
    )
    assert broken(
        lambda s, p: s["components"][condition]["inputDefinitions"]["parameters"].pop("pipelinechannel--secret")
    )
    assert broken(
        lambda s, p: s["components"]["comp-condition-1"]["dag"]["tasks"]["select"].update(dependentTasks=["nobody"])
    )
    assert broken(lambda s, p: s["components"]["comp-prepare-data"]["outputDefinitions"]["parameters"].clear())
    assert broken(
        lambda s, p: s["root"]["dag"]["tasks"]["prepare-data"]["inputs"]["parameters"].pop(
            "pipelinechannel--gpus_prove"
        )
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_graph_is_the_golden_one(count):
    spec, platform = compiled(STAGES[:count])
    assert_golden(GOLDEN / f"ladder-{count}-stages.yaml", spec, platform)


def assert_golden(path, spec, platform):
    text = yaml.safe_dump_all([spec, platform], width=120, sort_keys=True)
    text = re.sub(r"kfp-\d+\.\d+\.\d+", "kfp-VERSION", text).replace(f":{VERSION}", ":VERSION")
    if os.environ.get("PODIUM_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; see this file's head on how to renew it"


def test_the_steps_stand_in_their_order_each_stage_inside_the_promotion_before():
    spec, _ = compiled(STAGES)
    names = list(tasks_of(spec))
    assert sorted(names) == sorted(
        ["Prepare data", "Shakedown", "Evaluate", "Register", "Report"]
        + [f"{stage}: {what}" for stage in STAGES for what in ("train", "verdict")]
    )
    conditions = [
        (content["taskInfo"]["name"], content["triggerPolicy"]["condition"])
        for component in [spec["root"], *spec["components"].values()]
        for content in component.get("dag", {}).get("tasks", {}).values()
        if "triggerPolicy" in content
    ]
    assert sorted(name for name, _ in conditions) == [
        *sorted(f"promoted by {stage}" for stage in STAGES),
        "shakedown passed",
    ]
    assert all(text.endswith(("== 'promote'", "== 'pass'")) for _, text in conditions)
    after = {name: content.get("dependentTasks", []) for name, (content, _) in tasks_of(spec).items()}
    assert after["Register"] == ["evaluate"]
    assert after["Report"] == ["register"]
    assert after["screen: verdict"] == ["train"]


def shipped(name):
    study = load_study(name)
    return list(study.stages), pipeline_documents(study_pipeline(study, text=read_study_text(name)[0]))


GRAPHS = {"three stages": lambda: (STAGES, compiled(STAGES))}
GRAPHS |= {name: functools.partial(shipped, name) for name in sorted(shipped_studies())}


@pytest.fixture(scope="module", params=GRAPHS)
def graph(request):
    """(stages, spec, platform) of the three-stage ladder and of each study that comes with Podium."""
    stages, (spec, platform) = GRAPHS[request.param]()
    return stages, spec, platform


def trains(stages):
    """Display name → the stage on whose devices the task runs."""
    return {"Shakedown": stages[0], "Evaluate": stages[-1]} | {f"{stage}: train": stage for stage in stages}


def test_what_trains_gets_its_stages_devices_and_nothing_else_does(graph):
    stages, spec, platform = graph
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    suffixes = input_suffixes(stages)
    tasks = tasks_of(spec)
    assert set(trains(stages)) < set(tasks)
    for name, (_, executor) in tasks.items():
        container, pod = container_of(spec, executor), settings[executor]
        if name not in trains(stages):
            assert "resources" not in container, name
            assert not {"nodeSelector", "tolerations", "emptyDirMounts"} & set(pod), name
            assert "python-steps" in container["image"]
            continue
        end = suffixes[trains(stages)[name]]
        resources = container["resources"]
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert resources["accelerator"]["resourceCount"].endswith(f"--gpus_{end}']}}}}")
        assert resources["resourceCpuRequest"].endswith(f"--cpu_{end}']}}}}")
        assert resources["resourceMemoryRequest"].endswith(f"--memory_{end}']}}}}")
        assert not {"resourceCpuLimit", "resourceMemoryLimit"} & set(resources), "a limit would kill what requests less"
        selector = pod["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
        tolerated = pod["tolerations"][0]["tolerationJson"]["componentInputParameter"]
        assert selector.removeprefix("pipelinechannel--") == f"node_selector_{end}"
        assert tolerated.removeprefix("pipelinechannel--") == f"tolerations_{end}"
        assert pod["emptyDirMounts"] == [{"medium": "Memory", "mountPath": "/dev/shm", "volumeName": "shm"}]
        assert "python-trainer" in container["image"]


def test_every_step_may_read_the_credentials_and_runs_without_them(graph):
    _, spec, platform = graph
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, (_, executor) in tasks_of(spec).items():
        for kind, keys in (("secretAsEnv", SECRET_KEYS), ("configMapAsEnv", CONFIG_KEYS)):
            (source,) = settings[executor][kind]
            assert source["optional"] is True, name
            assert [each["envVar"] for each in source["keyToEnv"]] == list(keys)


def test_what_a_person_reads_of_each_step_is_an_artifact_of_it(graph):
    stages, spec, _ = graph
    shown = {}
    for name, (content, _) in tasks_of(spec).items():
        outputs = spec["components"][content["componentRef"]["name"]].get("outputDefinitions", {}).get("artifacts", {})
        shown[name] = sorted(each["artifactType"]["schemaTitle"].removeprefix("system.") for each in outputs.values())
    assert shown == {
        "Prepare data": [],
        "Shakedown": ["Markdown"],
        **{f"{stage}: train": [] for stage in stages},
        **{f"{stage}: verdict": ["HTML", "Markdown", "Metrics"] for stage in stages},
        "Evaluate": ["HTML"],
        "Register": [],
        "Report": ["HTML"],
    }


def test_every_input_of_a_study_has_a_description_and_every_reference_an_input(graph, dangling):
    _, spec, platform = graph
    for name, content in spec["root"]["inputDefinitions"]["parameters"].items():
        assert content.get("description"), name
        assert "defaultValue" in content, name
    assert dangling(spec, platform) == []


def test_nothing_relies_on_what_kubeflow_ignores_or_on_a_package_registry(graph):
    _, spec, _ = graph
    for name, (content, executor) in tasks_of(spec).items():
        assert content["cachingOptions"] == {}, name
        assert "retryPolicy" not in content, name
        assert not any("pip install" in part for part in container_of(spec, executor)["command"]), name


def test_every_input_has_a_description_a_default_and_gpu_counts_are_text():
    spec, _ = compiled(STAGES, gpus={"screen": 2, "prove": 8})
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert {"study", "profile", "store", "budget", "launcher", "selection", "secret", "config"} <= set(inputs)
    for name, content in inputs.items():
        assert content.get("description"), name
        assert "defaultValue" in content, name
    counts = {stage: inputs[f"gpus_{stage}"] for stage in STAGES}
    assert {stage: (each["parameterType"], each["defaultValue"]) for stage, each in counts.items()} == {
        "screen": ("STRING", "2"),
        "validate": ("STRING", "0"),
        "prove": ("STRING", "8"),
    }
    for component in spec["components"].values():
        if "executorLabel" in component:
            assert all(each.get("description") for each in component["inputDefinitions"]["parameters"].values())


def test_only_the_stages_shape_the_graph():
    first = build_ladder("demo", ["a", "b"], Defaults(study="name: demo\n", gpus={"a": 1}))
    second = build_ladder("demo", ["a", "b"], Defaults(study="name: other\n" * 500, gpus={"a": 8}, launcher="job"))
    specs = [yaml.safe_load(pipeline_yaml(each).partition("\n---\n")[0]) for each in (first, second)]
    for spec in specs:
        spec["root"]["dag"]["tasks"]["prepare-data"]["inputs"]["parameters"].pop("compiled_gpus")
        for content in spec["root"]["inputDefinitions"]["parameters"].values():
            content.pop("defaultValue")
    assert specs[0] == specs[1]


def test_stages_whose_names_differ_only_in_signs_have_inputs_of_their_own(dangling):
    stages = ["a-b", "a.b", "a_b", "1st"]
    suffixes = input_suffixes(stages)
    assert len(set(suffixes.values())) == len(stages)
    spec, platform = compiled(stages)
    assert dangling(spec, platform) == []
    assert {f"gpus_{end}" for end in suffixes.values()} <= set(spec["root"]["inputDefinitions"]["parameters"])


def test_a_pipelines_name_is_one_that_pods_can_have():
    assert pipeline_name("Param.alloc_2") == "podium-param-alloc-2"


def test_the_ladder_loads_no_client_of_kubeflow_or_kubernetes_and_breaks_neither():
    code = """if True:
        import sys
        import podium.pipelines.ladder
        assert not {"kubernetes", "requests", "kfp.client"} & set(sys.modules)
        from kfp.client import Client
        from kfp import kubernetes
        import kubernetes.client
        assert kubernetes.client.V1Pod
    """
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
