import hashlib
import os
import re
import time
from pathlib import Path

import pytest
import yaml

from podium.components.kfp_components import VERSION
from podium.components.study.load import load_study, read_study_text, shipped_studies
from podium.components.study.plan import plan
from podium.pipelines.compile import Options, compile_study
from podium.trainer.trial.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"
"""`PODIUM_UPDATE_GOLDEN=1 pytest tests/pipelines` writes the golden files anew."""

STUDY = """
name: many
question: Do variants make the pipeline longer?
data: {{vocab_size: 512, corpus: {{source: builtin}}}}
config:
  model: {{family: transformer, d_model: 16, n_layers: 1, n_heads: 2, d_ff: 32}}
  data: {{sequence_length: 32}}
  optimizer: {{learning_rate: 1e-3}}
  batch: {{sequences: 4}}
  evaluation: {{every_steps: 5}}
  checkpoint: {{every_steps: 5}}
stages:
  ranking: {{budget: {{steps: 10}}, resources: {{gpus_per_trial: 2, parallel: 3}}, promotion: {{policy: always}}}}
  finals: {{budget: {{steps: 20}}, seeds: 2, promotion: {{policy: always}}}}
variants:
  baseline: {{}}
{variants}
"""


def study_of(count):
    rows = [f"  v{n}: {{overrides: {{optimizer.learning_rate: {0.001 + n / 1e6:.6f}}}}}" for n in range(1, count)]
    return STUDY.format(variants="\n".join(rows))


def compiled(text, out, **options):
    path = compile_study(load_study(text), out, text=text, options=Options(**options))
    return yaml.safe_load_all(path.read_text(encoding="utf-8"))


def defaults(spec):
    return {name: each["defaultValue"] for name, each in spec["root"]["inputDefinitions"]["parameters"].items()}


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_every_shipped_study_compiles_to_its_golden_pipeline(name, tmp_path, dangling):
    text, _ = read_study_text(name)
    out = compile_study(load_study(name), tmp_path / "pipeline.yaml", text=text)
    spec, platform = yaml.safe_load_all(out.read_text(encoding="utf-8"))
    assert dangling(spec, platform) == []
    assert defaults(spec)["study"] == text
    spec["root"]["inputDefinitions"]["parameters"]["study"]["defaultValue"] = "TEXT"
    golden = yaml.safe_dump_all([spec, platform], width=120, sort_keys=True)
    golden = re.sub(r"kfp-\d+\.\d+\.\d+", "kfp-VERSION", golden).replace(f":{VERSION}", ":VERSION")
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("PODIUM_UPDATE_GOLDEN"):
        path.write_text(golden, encoding="utf-8")
    assert golden == path.read_text(encoding="utf-8"), f"{path.name} differs: renew it if that is meant"


def test_the_file_holds_the_text_as_written_and_kfp_reads_it_back(tmp_path):
    from kfp import components

    text = study_of(2) + "# \"quotes\" 'more' `ticks` $(touch oops) {x} é\n# a line with a trailing space \n"
    out = compile_study(load_study(text), tmp_path / "p.yaml", text=text)
    read = components.load_component_from_file(str(out))
    assert read.component_spec.inputs["study"].default == text
    assert out.read_text(encoding="utf-8").startswith("# Pipeline podium-many, made by `podium compile`")


def test_the_inputs_start_with_what_the_study_and_the_command_say(tmp_path):
    spec, _ = compiled(study_of(2), tmp_path / "p.yaml", store="s3://b/p", budget_usd=12.5)
    found = defaults(spec)
    assert (found["store"], found["budget"], found["profile"], found["launcher"]) == (
        "s3://b/p",
        "12.5",
        "full",
        "process",
    )
    assert (found["gpus_ranking"], found["gpus_finals"]) == ("6", "0")


def test_under_launcher_job_the_pods_ask_for_no_gpus(tmp_path):
    spec, _ = compiled(study_of(2), tmp_path / "p.yaml", launcher="job")
    assert (defaults(spec)["gpus_ranking"], defaults(spec)["gpus_finals"]) == ("0", "0")


def test_a_thousand_variants_make_the_same_yaml_but_for_the_text_in_under_3_seconds(tmp_path):
    few, _ = compiled(study_of(2), tmp_path / "few.yaml")
    text = study_of(1000)
    assert len(text) < 100_000
    began = time.process_time()
    plan(load_study(text))
    many, _ = compiled(text, tmp_path / "many.yaml")
    assert time.process_time() - began < 15  # a fresh process takes under 1 s on a quiet machine
    for spec in (few, many):
        spec["root"]["inputDefinitions"]["parameters"]["study"].pop("defaultValue")
    assert few == many


def test_a_text_over_100_kB_goes_to_the_store_and_its_uri_is_the_input(tmp_path):
    text = study_of(2) + "# " + "x" * 100_000 + "\n"
    spec, _ = compiled(text, tmp_path / "p.yaml", store=str(tmp_path / "store"))
    key = f"studies/{hashlib.sha256(text.encode()).hexdigest()}.yaml"
    assert defaults(spec)["study"] == (tmp_path / "store" / key).as_uri()
    assert (tmp_path / "store" / key).read_text() == text


def test_a_text_that_needs_a_store_is_refused_without_one(tmp_path):
    text = study_of(2) + "# " + "x" * 100_000 + "\n"
    with pytest.raises(UserError, match=r"100,\d+ bytes.*name the store"):
        compiled(text, tmp_path / "p.yaml")
    assert not (tmp_path / "p.yaml").exists()
