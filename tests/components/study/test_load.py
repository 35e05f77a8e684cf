from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from podium.components.study.design import Overrides, variants
from podium.components.study.fingerprint import study_hash
from podium.components.study.load import dump_study, load_study, shipped_studies
from podium.components.study.plan import plan
from podium.components.study.policy import needs_baseline_run
from podium.components.study.schema import Study
from podium.components.study.trials import stage_seeds, variant_config
from podium.trainer.trial.errors import ConfigError, UserError
from podium.trainer.trial.yaml_text import parse_yaml

Text = Callable[..., str]


def problems(text: str, **given: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_study(text, **given)
    return [str(problem) for problem in caught.value.problems]


PROFILES = [
    (name, profile)
    for name, path in shipped_studies().items()
    for profile in ["full", *(parse_yaml(path.read_text(), name).get("profiles") or {})]
]


@pytest.mark.parametrize(("name", "profile"), PROFILES, ids=lambda value: value)
def test_every_profile_of_every_shipped_study_loads_and_plans(name: str, profile: str) -> None:
    study = load_study(name, profile=profile)
    assert study.name == name
    assert study.profile == profile
    assert plan(study).trials > 0


@pytest.mark.parametrize(("name", "profile"), PROFILES, ids=lambda value: value)
def test_a_dumped_study_loads_as_the_same_study(name: str, profile: str) -> None:
    study = load_study(name, profile=profile)
    again = load_study(dump_study(study))
    assert again == study
    assert study_hash(again) == study_hash(study)


def test_the_study_of_parameter_allocation_is_the_one_of_its_description() -> None:
    study = load_study("param-allocation")
    refs = variants(study)
    assert [ref.name for ref in refs] == ["baseline", "emb25", "emb45", "glu2x", "glu3x", "glu4x"]
    assert stage_seeds(study, "ranking") == [42]
    assert stage_seeds(study, "finals") == [52, 53, 54]
    ranking = variant_config(study, "ranking", refs[1])
    assert (ranking.batch.sequences, ranking.data.sequence_length) == (4, 256)
    assert ranking.steps == 4882
    assert (ranking.evaluation.every_steps, ranking.checkpoint.every_steps) == (500, 2500)
    assert variant_config(study, "finals", refs[1]).tokens == pytest.approx(50e6, rel=1e-4)
    assert study.stages["finals"].proof
    assert [ref.name for ref in variants(load_study("param-allocation", profile="full-sweep"))] == [
        r.name for r in refs
    ]


@pytest.mark.parametrize("text", ["\n", "{}", "{}\n", "# only a comment\n"])
def test_an_empty_study_gives_one_error_that_says_what_it_needs(text: str) -> None:
    assert problems(text) == ["this is an empty study; it needs at least name, question, data, config, stages"]


def test_an_unknown_study_names_the_shipped_ones() -> None:
    (problem,) = problems("no-such-study")
    assert "no-such-study" in problem
    assert "param-allocation" in problem


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: [1,\nb: 2\n", "line 3, column 1"),
        ("name: a\nname: b\n", "line 2, column 1"),
        ("a:\n\t- b\n", "line 2, column 1"),
        ("a: {b: 1, b: 2}\n", "line 1, column 11"),
    ],
)
def test_broken_yaml_shows_file_line_and_column(text: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    (problem,) = problems(str(path))
    assert problem.startswith(f"{path}, {where}: ")


def test_problems_of_schema_config_and_meaning_come_together(tiny_text: Text) -> None:
    text = tiny_text(
        {
            "budgett": 1,
            "stages.finals.seedz": 3,
            "stages.ranking.promotion.metrik": "x",
            "config.optimizer.lr": 3,
            "axes.glu.field": "model.allocation.glu_expansoin",
        }
    )
    assert sorted(problems(text)) == sorted(
        [
            "budgett: unknown field; did you mean 'budget'?",
            "stages.finals.seedz: unknown field; did you mean 'seeds'?",
            "stages.ranking.promotion.metrik: unknown field; did you mean 'metric'?",
            "config.optimizer.lr: unknown field; did you mean 'optimizer.learning_rate'?",
            "axes.glu.field: no field 'model.allocation.glu_expansoin' in the config; "
            "did you mean 'model.allocation.glu_expansion'?",
        ]
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages.ranking.seeds": "three"}, "stages.ranking.seeds: must be a number of seeds or a list of seeds"),
        ({"config.optimizer.learning_rate": "fast"}, "config.optimizer.learning_rate: must be a valid number, got"),
        ({"data.vocab_size": "many"}, "data.vocab_size: must be a whole number such as"),
        ({"stages.ranking": 3}, "stages.ranking: must be a mapping of fields, got 3"),
        ({"config.model": 3}, "config.model: must be a mapping of fields, got 3"),
        ({"axes.glu.values": [2, -1]}, "axes.glu: names must be one a value, got 4 names for 2 values"),
        ({"axes.glu.values": [2, -1, 2.66, 4]}, "axes.glu.values.1: must be greater than 0, got -1"),
        ({"axes.glu.field": "seed"}, "axes.glu.field: a study sets seed by a stage's seeds"),
        ({"axes.glu.field": "glu_expansion"}, "did you mean 'model.allocation.glu_expansion'?"),
        ({"stages.ranking.promotion.metric": "accuracy"}, "must be 'final_val_loss', 'final_val_perplexity'"),
        ({"stages.ranking.promotion.policy": "best_man"}, "must be one of always, top_per_axis, best_mean"),
        ({"stages.finals.seeds": [42, 43]}, "stages.finals.seeds: a proof needs fresh seeds, got 42"),
        ({"stages.finals.seeds": 11}, "seeds must be 1 to 10, or a list of seeds, got 11"),
        ({"stages.finals.min_seeds": 4}, "stages.finals.min_seeds: must be at most the 3 seeds, got 4"),
        ({"config.evaluation.every_steps": 50}, "config.evaluation.every_steps: must be at most the run's 40 steps"),
        ({"stages.ranking.stop": {"patience": {"evaluations": 50}}}, "stages.ranking.stop.patience.evaluations"),
        ({"budget": {"usd": -5}}, "budget.usd: must be greater than 0, got -5"),
        (
            {"budget": {"usd": 1}, "stages.ranking.price": {"usd_per_run": 2}},
            "budget.usd: the first stage, ranking, costs $12.00 alone, got $1.00",
        ),
        ({"config.model.tied_embeddings": False, "config.model.allocation.parameters": "10M", "data.vocab_size": "16k"},
         "the nearest feasible embedding_share is"),
        ({"variants": {"a": {"overrides": {"optimizer.learning_rate": 1e-3}}}},
         "variants.a: is the same training as 'baseline'"),
        ({"design": "list"}, "stages.ranking.promotion.policy: top_per_axis needs axes"),
        ({"stages.finals.promotion": {"policy": "top_per_axis"}}, "it can only be the first stage's"),
        ({"config.seed": 3}, "config.seed: a study sets this by a stage's seeds"),
        ({"stages.ranking.overrides": {"max_tokens": 5}}, "a study sets max_tokens by a stage's budget.tokens"),
        ({"config.model.vocab_size": 512}, "config.model.vocab_size: must be data.vocab_size = 2048, got 512"),
        ({"stages.ranking.budget": {"tokens": 5}}, "max_tokens must be at least one step of 512 tokens, got 5"),
        ({"stages.ranking.budget": {"tokens": 5, "steps": 5}}, "stages.ranking.budget: give tokens or steps"),
        ({"baseline": {"recorded": {"B": {"mean": 3.3, "source": "x"}}}}, "baseline.recorded.B: must be a stage"),
        ({"axes.glu.names": ["../x", "b", "c", "d"]}, "axes.glu.names.0: must be lower-case letters"),
        ({"axes.glu.names": ["emb25", "b", "c", "d"]}, "2 variants have the name 'emb25'"),
        ({"axes.glu.values": [2, 2.0, 2.66, 4]}, "axes.glu.values: must be different, got 2.0 twice"),
        ({"stages": {}}, "stages: needs at least one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_what_was_allowed(
    changes: dict[str, Any], told: str, tiny_text: Text
) -> None:
    found = problems(tiny_text(changes))
    assert any(told in problem for problem in found), found


def test_a_mistake_in_the_base_config_is_told_once_and_not_for_every_variant(tiny_text: Text) -> None:
    assert len(problems(tiny_text({"stages.finals.budget": {"tokens": 5}}))) == 1
    kill = {"criteria": [{"metric": "loss", "threshold": 0.1}], "span_tokens": "1M", "min_tokens": 0}
    assert len(problems(tiny_text({"stages.ranking.stop": {"kill": kill}}))) == 1


def test_an_axis_over_the_vocabulary_must_rank_by_bits_per_byte(tiny_text: Text) -> None:
    model = {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128}
    axis = {"vocabulary": {"field": "data.vocab_size", "values": ["1k", 2048, "4k"]}}
    changes = {"axes": axis, "config.model": model}
    kill = {"criteria": [{"metric": "perplexity", "threshold": 9}], "span_tokens": 5120, "min_tokens": 5120}
    found = problems(tiny_text(changes | {"stages.ranking.stop": {"kill": kill}}))
    assert [problem.partition(": ")[0] for problem in found] == [
        "stages.ranking.promotion.metric",
        "stages.ranking.stop.kill",
        "stages.finals.promotion.metric",
    ]
    bits = {f"stages.{name}.promotion.metric": "final_bits_per_byte" for name in ("ranking", "finals")}
    study = load_study(tiny_text(changes | bits))
    sizes = {ref.name: variant_config(study, "ranking", ref).model.vocab_size for ref in variants(study)}
    assert sizes == {"baseline": 2048, "vocabulary-1000": 1000, "vocabulary-4000": 4000}


def test_an_axis_over_tied_embeddings_runs(tiny_text: Text) -> None:
    axis = {"tied": {"field": "model.tied_embeddings", "values": [True, False]}}
    model = {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128}
    study = load_study(tiny_text({"axes": axis, "config.model": model}))
    tied = {ref.name: variant_config(study, "ranking", ref).model.tied_embeddings for ref in variants(study)}
    assert tied == {"baseline": True, "tied-false": False}


def test_a_profile_merges_replaces_other_kinds_and_removes_by_null(tiny_text: Text) -> None:
    quick = {
        "data": {"corpus": {"source": "builtin"}},
        "config": {"optimizer": {"learning_rate": 2e-3}},
        "axes": {"glu": None},
        "stages": {
            "ranking": {"budget": {"tokens": "20480"}, "promotion": {"policy": "best_mean"}},
            "finals": None,
        },
    }
    study = load_study(tiny_text({"profiles": {"quick": quick}}), profile="quick")
    assert study.data.corpus.source == "builtin"
    assert study.data.corpus.path is None
    assert study.config["optimizer"]["learning_rate"] == 2e-3
    assert study.config["batch"] == {"sequences": 4}
    assert list(study.axes) == ["embedding"]
    assert list(study.stages) == ["ranking"]
    assert study.stages["ranking"].budget.tokens == 20480
    assert study.stages["ranking"].budget.steps is None
    assert study.stages["ranking"].promotion.metric == "final_val_loss"


def test_an_unknown_profile_names_those_there_are(tiny_text: Text) -> None:
    (problem,) = problems(tiny_text({"profiles": {"smoke": {}}}), profile="smok")
    assert "did you mean 'smoke'?" in problem
    assert "full, smoke" in problem


def test_a_profile_that_removes_what_is_not_there_is_refused(tiny_text: Text) -> None:
    (problem,) = problems(tiny_text({"profiles": {"quick": {"stages": {"final": None}}}}), profile="quick")
    assert problem.startswith("profiles.quick.stages.final: ")


def test_overrides_of_the_command_line_change_every_stage(tiny_text: Text, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    given = Overrides(seeds=2, gpus=4, budget_usd=7, data=str(other))
    study = load_study(tiny_text({"stages.finals.min_seeds": 1}), overrides=given)
    assert [stage.seeds for stage in study.stages.values()] == [2, 2]
    assert [(s.resources.gpus_per_trial, s.resources.parallel) for s in study.stages.values()] == [(1, 4), (1, 4)]
    assert study.budget.usd == 7
    assert study.data.corpus.path == str(other)


def test_gpus_that_do_not_divide_and_other_bad_flags_are_refused(tiny_text: Text) -> None:
    text = tiny_text({"stages.ranking.resources": {"gpus_per_trial": 4}, "stages.finals.min_seeds": 1})
    (problem,) = problems(text, overrides=Overrides(gpus=6))
    assert "multiple of gpus_per_trial = 4, got 6" in problem
    assert "got -1" in problems(text, overrides=Overrides(gpus=-1))[0]
    assert "got 0" in problems(text, overrides=Overrides(seeds=0))[0]
    assert "--data" in problems(text, overrides=Overrides(data=" "))[0]


def test_the_numbers_of_a_study_have_one_spelling(tiny_text: Text) -> None:
    written = load_study(
        tiny_text({"config.model.allocation.parameters": "0.32M", "axes.glu.values": [2.0, 2.66, 3.0, 4.0]})
    )
    assert written == load_study(tiny_text())


def test_prices_come_from_the_site_by_gpu_class(tiny_text: Text, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("gpu_classes:\n  l40s: {usd_per_gpu_hour: 1.5}\n")
    text = tiny_text(
        {
            "stages.ranking.resources": {"gpus_per_trial": 1, "gpu_class": "l40s"},
            "stages.ranking.price": {"minutes_per_run": 2},
            "stages.finals.resources": {"gpus_per_trial": 1, "gpu_class": "l40s"},
            "stages.finals.price": {"usd_per_run": 3},
        }
    )
    study = load_study(text, site=str(site))
    assert study.stages["ranking"].price.usd_per_gpu_hour == 1.5
    assert study.stages["finals"].price.usd_per_gpu_hour is None


@pytest.mark.parametrize("many", ["variants", "values"])
def test_a_thousand_variants_are_validated_and_planned_in_seconds(many: str, tiny_text: Text) -> None:
    rates = [1.1e-4 * (1 + i) / 100 for i in range(1000)]
    if many == "variants":
        listed = {f"v{i:04d}": {"overrides": {"optimizer.learning_rate": rate}} for i, rate in enumerate(rates)}
        changes: dict[str, Any] = {"axes": {}, "design": "list", "variants": listed,
                                   "stages.ranking.promotion.policy": "best_mean"}  # fmt: skip
    else:
        changes = {"axes": {"rate": {"field": "optimizer.learning_rate", "values": rates,
                                     "names": [f"r{i}" for i in range(1000)]}}}  # fmt: skip
    text = tiny_text(changes)
    began = time.process_time()
    planned = plan(load_study(text))
    assert time.process_time() - began < 15  # 0.4 s on a quiet machine
    assert planned.stages[0].trials == 1001


def test_a_resolved_study_says_its_profile_again(tiny: Study) -> None:
    named = tiny.model_copy(update={"profile": "quick"})
    assert load_study(dump_study(named)).profile == "quick"
    with pytest.raises(ConfigError, match="no profile 'other'"):
        load_study(dump_study(named), profile="other")


def test_fewer_seeds_and_gpus_than_declared_make_a_debug_run(tiny_text: Text) -> None:
    text = tiny_text({"stages.finals.resources": {"gpus_per_trial": 8, "parallel": 2}})
    study = load_study(text, overrides=Overrides(seeds=1, gpus=1))
    finals = study.stages["finals"]
    assert (finals.seeds, finals.min_seeds) == (1, 1)
    assert (finals.resources.gpus_per_trial, finals.resources.parallel) == (1, 1)


def test_a_baseline_that_is_run_takes_the_place_of_figures_and_thresholds(tiny_text: Text) -> None:
    threshold = {"policy": "beats_baseline", "threshold": 3.3, "threshold_source": "a paper"}
    recorded = {"recorded": {"finals": {"mean": 3.3, "source": "the record"}}}
    text = tiny_text({"stages.ranking.promotion": threshold, "baseline": recorded})
    kept, run = load_study(text), load_study(text, overrides=Overrides(baseline="run"))
    assert needs_baseline_run(run, "ranking")
    assert needs_baseline_run(run, "finals")
    assert not needs_baseline_run(kept, "ranking")
    assert not needs_baseline_run(kept, "finals")
