from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podium.components.study.design import variants
from podium.components.study.fingerprint import canonical_hash, run_id, study_hash, trial_fingerprint
from podium.components.study.load import load_study
from podium.components.study.schema import Study
from podium.components.study.trials import datasets, stage_seeds, trial_config

Text = Callable[..., str]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=5))
def test_the_order_of_keys_never_changes_a_hash(value: dict[str, object]) -> None:
    assert canonical_hash(dict(reversed(list(value.items())))) == canonical_hash(value)


@pytest.mark.parametrize(
    "value",
    [object(), {1: "a"}, float("nan"), float("inf"), {"a": {1, 2}}, b"x", Path("a"), [lambda: 0]],
    # names that do not change from one process to the next: pytest-xdist compares them
    ids=["object", "key that is no text", "nan", "inf", "set", "bytes", "path", "function"],
)
def test_what_has_no_stable_serialisation_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_hash(value)


def test_different_values_have_different_hashes() -> None:
    class Colour(enum.Enum):
        RED = "red"

    values = [None, True, 1, 1.0, "1", [1], {"1": 1}, [], {}, "", Colour.RED]
    assert len({canonical_hash(value) for value in values}) == len(values)


def test_a_moved_corpus_is_the_same_study(tiny_text: Text, tmp_path: Path) -> None:
    here = load_study(tiny_text())
    there = load_study(tiny_text({"data.corpus.path": str(tmp_path / "elsewhere.txt")}))
    assert study_hash(here) == study_hash(there)
    assert run_id(here, ["a"]) != run_id(here, ["b"])


def test_the_order_of_variants_and_fields_is_no_part_of_a_study_but_that_of_stages_is(tiny_text: Text) -> None:
    listed = {name: {"overrides": {"optimizer.learning_rate": rate}} for name, rate in [("a", 2e-3), ("b", 3e-3)]}
    changes = {"axes": {}, "design": "list", "stages.ranking.promotion": {"policy": "best_mean"}}
    one = load_study(tiny_text(changes | {"variants": listed}))
    other = load_study(tiny_text(changes | {"variants": dict(reversed(listed.items()))}))
    assert study_hash(one) == study_hash(other)
    swapped = one.model_copy(update={"stages": dict(reversed(one.stages.items()))})
    assert study_hash(swapped) != study_hash(one)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.finals.seeds": 4},
        {"budget": {"usd": 5}},
        {"stages.ranking.resources": {"parallel": 2}},
        {"base_seed": 1},
    ],
    ids=str,
)
def test_what_a_study_declares_is_part_of_it(changes: dict[str, object], tiny: Study, tiny_text: Text) -> None:
    assert study_hash(load_study(tiny_text(changes))) != study_hash(tiny)


def test_a_profiles_name_is_no_part_of_a_study(tiny: Study) -> None:
    assert study_hash(tiny.model_copy(update={"profile": "other"})) == study_hash(tiny)


def test_new_runs_beside_the_first_have_ids_of_their_own(tiny: Study) -> None:
    ids = {run_id(tiny, ["a"], again=again) for again in range(5)}
    assert len(ids) == 5
    assert all(identity.startswith("tiny-") and len(identity) == len("tiny-") + 8 for identity in ids)


def test_a_trials_fingerprint_follows_config_data_trainer_reference_and_for_a_proof_the_run(tiny: Study) -> None:
    config = trial_config(tiny, "ranking", variants(tiny)[1], 42)
    prints = {
        trial_fingerprint(config, "data", trainer="t"),
        trial_fingerprint(config.model_copy(update={"seed": 43}), "data", trainer="t"),
        trial_fingerprint(config, "other", trainer="t"),
        trial_fingerprint(config, "data", trainer="u"),
        trial_fingerprint(config, "data", trainer="t", references=["r"]),
        trial_fingerprint(config, "data", trainer="t", run_id="run"),
    }
    assert len(prints) == 6
    assert trial_fingerprint(config, "data", trainer="t") in prints


def test_seeds_follow_the_stage_and_never_overlap(tiny_text: Text) -> None:
    stages = {
        name: {"budget": {"steps": 40}, "seeds": count, "promotion": {"policy": "always"}}
        for name, count in [("a", 2), ("b", 3), ("c", 5)]
    }
    study = load_study(tiny_text({"stages": stages}))
    assert [stage_seeds(study, name) for name in stages] == [[42, 43], [52, 53, 54], [62, 63, 64, 65, 66]]


@given(st.lists(st.integers(1, 10), min_size=1, max_size=5), st.integers(0, 1000))
def test_counted_seeds_of_different_stages_are_all_different(counts: list[int], base_seed: int) -> None:
    declared = load_study("param-allocation", profile="smoke")
    stage = declared.stages["ranking"]
    stages = {f"s{i}": stage.model_copy(update={"seeds": count}) for i, count in enumerate(counts)}
    study = declared.model_copy(update={"stages": stages, "base_seed": base_seed})
    seeds = [seed for name in stages for seed in stage_seeds(study, name)]
    assert len(set(seeds)) == len(seeds) == sum(counts)


def test_two_axes_of_the_data_prepare_every_combination(tiny_text: Text, corpus: Path) -> None:
    other = corpus.with_name("other.txt")
    other.write_text("other")
    bits = {f"stages.{name}.promotion.metric": "final_bits_per_byte" for name in ("ranking", "finals")}
    axes = {
        "vocabulary": {"field": "data.vocab_size", "values": [2048, 1024]},
        "text": {"field": "data.corpus.path", "values": [str(corpus), str(other)], "names": ["this", "that"]},
    }
    model = {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128}
    study = load_study(tiny_text({"axes": axes, "config.model": model} | bits))
    pairs = {(config.vocab_size, config.corpus.path) for config in datasets(study).values()}
    assert pairs == {(size, str(path)) for size in (2048, 1024) for path in (corpus, other)}
