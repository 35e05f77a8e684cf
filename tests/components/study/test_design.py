from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podium.components.study.design import experiments, variants
from podium.components.study.fields import study_fields, value_at, with_overrides
from podium.components.study.load import load_study
from podium.components.study.schema import Axis, Study
from podium.components.study.trials import trial_config, variant_config
from podium.trainer.trial.errors import ConfigError

Text = Callable[..., str]


def test_one_at_a_time_is_the_baseline_and_every_other_value_of_each_axis(tiny: Study) -> None:
    assert [ref.name for ref in variants(tiny)] == ["baseline", "emb25", "emb45", "glu2x", "glu3x", "glu4x"]
    assert variants(tiny)[1].axis_values == {"embedding": 0.25, "glu": 2.66}


def test_an_axis_table_has_a_row_a_value_and_its_baseline_row_is_the_baselines_trial(tiny: Study) -> None:
    rows = [(row.axis, row.value, row.name, row.variant) for row in experiments(tiny)]
    assert len(rows) == 7
    assert rows[1] == ("embedding", 0.35, "emb35", "baseline")
    assert rows[4] == ("glu", 2.66, "glu266x", "baseline")
    assert {row[3] for row in rows} == {ref.name for ref in variants(tiny)}


def test_a_grid_has_every_combination_once(tiny_text: Text) -> None:
    promotion = {f"stages.{name}.promotion": {"policy": "best_mean"} for name in ("ranking", "finals")}
    study = load_study(tiny_text({"design": "grid"} | promotion))
    refs = variants(study)
    assert len(refs) == 12
    assert len({tuple(ref.axis_values.values()) for ref in refs}) == 12
    assert refs[0].axis_values == {"embedding": 0.35, "glu": 2.66}
    assert refs[1].name == "emb25-glu2x"


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    design=st.sampled_from(["one_at_a_time", "grid"]),
    data=st.data(),
)
def test_a_design_has_the_right_number_of_different_variants(counts: list[int], design: Any, data: Any) -> None:
    fields = ["optimizer.learning_rate", "optimizer.weight_decay", "optimizer.beta1"]
    levels = [0.1, 0.2, 0.3, 0.4]
    base = [data.draw(st.sampled_from(levels[:count])) for count in counts]
    study = load_study("param-allocation", profile="smoke")
    config = with_overrides(study.config, dict(zip(fields, base, strict=False)))
    axes = {f"axis{i}": Axis(field=fields[i], values=levels[:count]) for i, count in enumerate(counts)}
    study = study.model_copy(update={"config": config, "axes": axes, "design": design})
    refs = variants(study)
    expected = 1 + sum(count - 1 for count in counts)
    if design == "grid":
        expected = 1
        for count in counts:
            expected *= count
    assert len(refs) == expected
    assert len({tuple(ref.axis_values.values()) for ref in refs}) == expected
    assert len({ref.name for ref in refs}) == expected
    assert refs[0].name == study.baseline.variant
    for ref in refs:
        resolved = variant_config(study, "ranking", ref)
        assert [value_at(resolved, axis.field) for axis in axes.values()] == list(ref.axis_values.values())


def test_a_variant_goes_over_its_stage_and_its_stage_over_the_base(tiny_text: Text) -> None:
    study = load_study(
        tiny_text(
            {
                "stages.ranking.overrides": {"optimizer.learning_rate": 2e-3, "optimizer.beta2": 0.9},
                "variants": {"own": {"overrides": {"optimizer.learning_rate": 7e-3}}},
            }
        )
    )
    configs = {ref.name: variant_config(study, "ranking", ref).optimizer for ref in variants(study)}
    assert (configs["baseline"].learning_rate, configs["baseline"].beta2) == (2e-3, 0.9)
    assert (configs["own"].learning_rate, configs["own"].beta2) == (7e-3, 0.9)
    own = next(ref for ref in variants(study) if ref.name == "own")
    assert variant_config(study, "finals", own).optimizer.learning_rate == 7e-3


def test_the_baseline_has_no_kill_rule_and_the_others_the_stages(tiny_text: Text) -> None:
    kill = {"criteria": [{"metric": "perplexity", "threshold": 9}], "span_tokens": 5120, "min_tokens": 5120}
    study = load_study(tiny_text({"stages.ranking.stop": {"kill": kill, "patience": {"evaluations": 2}}}))
    stops = {ref.name: variant_config(study, "ranking", ref).stop for ref in variants(study)}
    assert [name for name, stop in stops.items() if stop.kill is None] == ["baseline"]
    assert all(stop.patience is not None for stop in stops.values())


def test_a_trials_config_is_resolved_and_has_its_seed(tiny: Study) -> None:
    config = trial_config(tiny, "finals", variants(tiny)[2], 54)
    assert config.seed == 54
    assert config.model.dimensions
    assert (config.max_steps, config.max_tokens) == (60, None)


def test_an_error_names_the_variant_and_the_field(tiny: Study) -> None:
    ref = variants(tiny)[1].model_copy(update={"overrides": {"optimizer.learning_rate": -1.0}})
    with pytest.raises(ConfigError, match=r"config\.optimizer\.learning_rate: .*\(variant emb25, stage ranking\)"):
        variant_config(tiny, "ranking", ref)


@given(st.dictionaries(st.sampled_from(["a", "a.b", "a.c", "a.b.c", "d", "d.e"]), st.integers(), max_size=4))
def test_setting_dotted_fields_leaves_the_given_mapping_as_it_was(overrides: dict[str, int]) -> None:
    tree = {"a": {"b": {"c": 1}, "c": 2}, "d": 3}
    before = repr(tree)
    result = with_overrides(tree, overrides)
    assert repr(tree) == before
    if overrides:
        *parents, last = list(overrides)[-1].split(".")
        node: Any = result
        for part in parents:
            node = node[part]
        assert node[last] == list(overrides.values())[-1]


def test_every_field_that_may_be_an_axis_is_one_of_the_configs() -> None:
    fields = study_fields()
    assert {"optimizer.learning_rate", "model.allocation.embedding_share", "data.vocab_size"} <= set(fields)
    assert not {"seed", "max_steps", "stop.kill", "model.vocab_size"} & set(fields)
