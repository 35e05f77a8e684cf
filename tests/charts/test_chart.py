"""What holds of the chart without Helm: versions, schema, README. `tests/cluster/chart` renders and installs it."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "podium"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "charts" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolved(found):
    return SCHEMA["$defs"][found["$ref"].rsplit("/", 1)[1]] if "$ref" in found else found


def objects(found, where=""):
    """Every mapping that the schema describes, with its place."""
    found = resolved(found)
    if found.get("type") == "object":
        yield where, found
    inside = {**found.get("properties", {}), **found.get("patternProperties", {})}
    if "items" in found:
        inside["[]"] = found["items"]
    for name, each in inside.items():
        yield from objects(each, f"{where}.{name}")
    for each in found.get("anyOf", []):
        yield from objects(each, where)


def test_the_charts_versions_are_the_packages():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert {each["image"] for each in images} == {
        f"{VALUES['images'][name]['repository']}:{version}" for name in ("steps", "trainer")
    }


def test_the_images_are_those_that_components_name():
    from podium.components.kfp_components import STEPS_IMAGE, TRAINER_IMAGE, VERSION

    for name, image in (("steps", STEPS_IMAGE), ("trainer", TRAINER_IMAGE)):
        assert f"{VALUES['images'][name]['repository']}:{VERSION}" == image


def test_no_mapping_takes_a_key_that_is_not_declared():
    free = {".global"}  # Helm's own
    open_ones = [
        where
        for where, found in objects(SCHEMA)
        if where not in free
        and found.get("additionalProperties") is not False
        and not isinstance(found.get("additionalProperties"), dict)
        and found is not SCHEMA["$defs"]["kubernetesObject"]
    ]
    assert open_ones == []


def test_a_mapping_of_the_kubernetes_api_is_the_only_one_that_is_not_ours():
    """Where a value is handed to the API as it is, the server's strict validation is what refuses a typo."""
    theirs = {where for where, found in objects(SCHEMA) if found is SCHEMA["$defs"]["kubernetesObject"]}
    assert theirs == {
        ".mlflow.affinity",
        ".mlflow.extraEnv.[].valueFrom",
        ".networkPolicy.mlflowFrom.[].namespaceSelector",
        ".networkPolicy.mlflowFrom.[].podSelector",
        ".networkPolicy.mlflowFrom.[].ipBlock",
        ".networkPolicy.mlflowEgress.[].to.[]",
        ".networkPolicy.mlflowEgress.[].ports.[]",
        ".networkPolicy.trialEgress.[].to.[]",
        ".networkPolicy.trialEgress.[].ports.[]",
    }


def test_values_and_schema_have_the_same_keys():
    def compare(values, found, where=""):
        declared = set(resolved(found)["properties"]) - {"global"}
        assert set(values) == declared, where or "the top level"
        for key, value in values.items():
            inner = resolved(resolved(found)["properties"][key])
            # a mapping without entries of its own (labels, classes) has no keys to compare
            if isinstance(value, dict) and "properties" in inner and inner is not SCHEMA["$defs"]["resources"]:
                compare(value, inner, f"{where}.{key}")

    compare(VALUES, SCHEMA)


def test_the_readme_says_what_the_values_say(readme):
    text = (CHART / "README.md").read_text()
    assert readme.with_table(text, readme.table(SCHEMA)) == text, "run python charts/readme.py"
    assert "| `mlflow.database.existingSecret` | string |" in text


def test_the_schema_gets_an_entry_of_its_own_for_each_new_value(readme):
    assert readme.completed(SCHEMA, VALUES) == SCHEMA, "run python charts/readme.py"
    new = VALUES | {"images": {**VALUES["images"], "retries": 3}, "toys": {"on": False, "names": []}}
    made = readme.completed(SCHEMA, new)["properties"]
    assert made["images"]["properties"]["retries"] == {"type": "integer"}
    assert made["toys"]["properties"] == {"on": {"type": "boolean"}, "names": {"type": "array"}}
    assert made["toys"]["additionalProperties"] is False
    assert made["images"]["properties"]["pullPolicy"] == SCHEMA["properties"]["images"]["properties"]["pullPolicy"]


def test_a_value_without_documentation_is_an_error(readme):
    documented = dict(readme.documentation("# -- of a\na: 1\nb:\n  # -- of c,\n  # in two lines\n  c: 2\n  d: 3\n"))
    assert documented == {"a": "of a", "b.c": "of c, in two lines"}
    assert dict(readme.leaves({"a": 1, "b": {"c": 2, "d": {}}})) == {"a": 1, "b.c": 2, "b.d": {}}


def test_every_shape_of_ci_is_in_the_readme_and_sets_no_default_again():
    text = (CHART / "README.md").read_text()
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    assert len(files) >= 6
    for path in files:
        assert f"(ci/{path.name})" in text
        assert path.read_text().startswith("# "), "says what shape it is"


def test_the_settings_of_jobs_that_the_chart_writes_are_those_that_the_launcher_knows():
    from podium.components.launch.job_manifest import JobSettings

    template = (CHART / "templates" / "runtime" / "_settings.tpl").read_text()
    settings = template.split('define "podium.jobSettings"')[1].split("{{- end -}}\n\n")[0]
    written = set(re.findall(r"^([a-z_]+):", settings, re.MULTILINE)) | {"gpu_classes"}
    assert written <= set(JobSettings.model_fields)
    by_site = {"namespace", "env", "check_sources"}  # the pod's own; ConfigMap; never off by a chart
    assert set(JobSettings.model_fields) - written == by_site
