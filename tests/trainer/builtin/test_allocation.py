from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from podium.trainer.builtin import allocation
from podium.trainer.builtin.allocation import Dimensions, choose_heads, count_parameters, resolve, resolve_config, solve
from podium.trainer.builtin.config import load_config
from podium.trainer.builtin.model_config import Allocation, TransformerConfig
from podium.trainer.trial.errors import ConfigError

SHARES = (0.25, 0.35, 0.45)
EXPANSIONS = (2.0, 2.66, 3.0, 4.0)


def request(parameters: int = 10_000_000, share: float = 0.35, expansion: float = 2.66) -> Allocation:
    return Allocation(parameters=parameters, embedding_share=share, glu_expansion=expansion)


def assert_meets(solved: Dimensions, asked: Allocation) -> None:
    assert abs(solved.counts.total / asked.parameters - 1) <= 0.005 + 1e-9
    assert abs(solved.embedding_share - asked.embedding_share) <= 0.015 + 1e-9
    assert abs(solved.d_ff / solved.d_model / asked.glu_expansion - 1) <= 0.05 + 1e-9
    assert 1 <= solved.n_layers <= 64
    assert solved.d_model % solved.n_heads == 0
    assert (solved.d_model // solved.n_heads) % 2 == 0


@pytest.mark.parametrize("vocab_size", [16_000, 16_384])
@pytest.mark.parametrize(("share", "expansion"), list(itertools.product(SHARES, EXPANSIONS)))
def test_every_combination_of_the_study_is_met_at_10m(share: float, expansion: float, vocab_size: int) -> None:
    asked = request(share=share, expansion=expansion)
    assert_meets(solve(asked, vocab_size, True), asked)


@pytest.mark.parametrize(
    ("parameters", "vocab_size"),
    [(230_000, 2000), (320_000, 2048), (410_000, 2560), (530_000, 3072), (1_000_000, 4000)],
)
def test_every_combination_is_met_at_small_sizes_too(parameters: int, vocab_size: int) -> None:
    for share, expansion in itertools.product(SHARES, EXPANSIONS):
        asked = request(parameters, share, expansion)
        assert_meets(solve(asked, vocab_size, True), asked)


requests = st.builds(
    request,
    parameters=st.integers(5_000_000, 100_000_000),
    share=st.floats(0.02, 0.9),
    expansion=st.floats(1.0, 8.0),
)


@settings(deadline=None)
@given(asked=requests, vocab_size=st.integers(1_000, 65_536), tied=st.booleans())
def test_a_request_is_met_or_refused_with_a_feasible_one(asked: Allocation, vocab_size: int, tied: bool) -> None:
    try:
        solved = solve(asked, vocab_size, tied)
    except ConfigError as error:
        assume("nearest feasible embedding_share is " in error.message)
        nearest = float(error.message.split("nearest feasible embedding_share is ")[1].split(" ")[0])
        other = asked.model_copy(update={"embedding_share": nearest})
        assert_meets(solve(other, vocab_size, tied), other)
        # nothing between the asked and the named share is feasible
        half_way = asked.model_copy(update={"embedding_share": (asked.embedding_share + nearest) / 2})
        if abs(half_way.embedding_share - nearest) > 0.001:
            with pytest.raises(ConfigError):
                solve(half_way, vocab_size, tied)
    else:
        assert_meets(solved, asked)


def test_a_finer_search_finds_no_better_total_share_and_expansion() -> None:
    """The solution's deviation is the least over all widths, depths and feed-forward widths (by brute force)."""
    asked = request(500_000, 0.35, 2.66)
    best = min(_all_deviations(asked, 3072), key=lambda pair: pair[0])
    solved = solve(asked, 3072, True)
    assert (solved.d_model, solved.n_layers, solved.d_ff) == best[1]


def _all_deviations(asked: Allocation, vocab_size: int) -> list[tuple[float, tuple[int, int, int]]]:
    found = []
    for d_model in range(2, 163, 2):
        size = d_model // choose_heads(d_model)
        heads = math.log2(size / min(64, max(16, d_model / 4))) ** 2
        for n_layers in range(1, 65):
            for d_ff in range(2 * d_model, 4 * d_model):
                layers = n_layers * (4 * d_model**2 + 3 * d_model * d_ff + 2 * d_model)
                total = vocab_size * d_model + layers + d_model
                off = (
                    (total / asked.parameters - 1) / 0.005,
                    (vocab_size * d_model / total - asked.embedding_share) / 0.015,
                    (d_ff / d_model / asked.glu_expansion - 1) / 0.05,
                )
                if max(map(abs, off)) <= 1:
                    penalty = (d_model % 8 != 0) + 0.5 * (d_ff % 8 != 0) + heads
                    found.append((sum(x * x for x in off) + penalty, (d_model, n_layers, d_ff)))
    return found


def test_untied_at_a_quarter_is_refused_with_the_nearest_feasible_share() -> None:
    with pytest.raises(ConfigError, match=r"nearest feasible embedding_share is 0\.286 \(64 layers") as caught:
        solve(request(share=0.25), 16_000, False)
    assert "untied" in caught.value.message
    assert caught.value.problems[0].where == "model.allocation"


def test_a_size_below_any_vocabulary_is_refused_without_a_false_promise() -> None:
    with pytest.raises(ConfigError, match="no other share is feasible either"):
        solve(request(parameters=1000), 16_000, True)


def test_counts_are_those_of_the_formula_by_hand() -> None:
    config = TransformerConfig(vocab_size=10, d_model=4, n_layers=2, n_heads=2, d_ff=6)
    counts = count_parameters(config)
    assert counts.embedding == 40
    assert counts.attention == 2 * 4 * 16
    assert counts.feed_forward == 2 * 3 * 24
    assert counts.norm == 5 * 4
    assert counts.output == 0
    assert counts.total == 40 + 128 + 144 + 20
    assert count_parameters(config.model_copy(update={"tied_embeddings": False})).total == counts.total + 40


@given(st.integers(1, 2000).map(lambda half: 2 * half))
def test_heads_divide_the_width_with_an_even_size(d_model: int) -> None:
    n_heads = choose_heads(d_model)
    assert d_model % n_heads == 0
    assert (d_model // n_heads) % 2 == 0


def test_usual_widths_get_heads_of_about_64_and_small_ones_four_heads() -> None:
    assert choose_heads(768) == 12
    assert choose_heads(256) == 4
    assert choose_heads(160) == 4
    assert choose_heads(64) == 4


def test_resolve_fills_the_dimensions_once_and_leaves_them_then() -> None:
    config = TransformerConfig(vocab_size=16_000, allocation=request())
    resolved = resolve(config)
    assert resolved.dimensions[0] == 216
    assert resolved.allocation == config.allocation
    assert resolve(resolved) is resolved
    assert TransformerConfig.model_validate(resolved.model_dump()) == resolved


def test_dimensions_that_contradict_their_allocation_are_refused() -> None:
    resolved = resolve(TransformerConfig(vocab_size=16_000, allocation=request()))
    with pytest.raises(ConfigError, match="asks for 10000000 parameters, but the given dimensions have"):
        resolve(resolved.model_copy(update={"vocab_size": 8_000}))
    with pytest.raises(ConfigError, match=r"asks for an embedding share of 0\.25"):
        resolve(resolved.model_copy(update={"allocation": request(share=0.25)}))


def test_a_whole_run_is_resolved() -> None:
    run = load_config(
        {
            "model": {
                "vocab_size": 2048,
                "allocation": {"parameters": "320k", "embedding_share": 0.35, "glu_expansion": 2.66},
            },
            "data": {"sequence_length": 64},
            "optimizer": {"learning_rate": 1e-3},
            "batch": {"sequences": 4},
            "max_steps": 10,
            "evaluation": {"every_steps": 5},
        }
    )
    assert resolve_config(run).model.dimensions == resolve(run.model).dimensions
    assert resolve_config(resolve_config(run)) == resolve_config(run)


def test_a_thousand_distinct_solves_take_seconds() -> None:
    allocation._solve.cache_clear()
    started = time.process_time()
    for step in range(1000):
        solve(request(10_000_000 + 1000 * step), 16_000, True)
    assert time.process_time() - started < 15


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("share", "expansion"), list(itertools.product(SHARES, EXPANSIONS)))
def test_the_counts_are_those_of_the_model_itself(share: float, expansion: float, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    from podium.trainer.builtin.models.build import build_model

    # untied embeddings of 25 % of 10M are infeasible: a smaller vocabulary
    config = resolve(
        TransformerConfig(
            vocab_size=16_000 if tied else 8_000,
            tied_embeddings=tied,
            allocation=request(share=share, expansion=expansion),
        )
    )
    with torch.device("meta"):
        model = build_model(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts = count_parameters(config)
    assert counts.total == sum(sizes.values())
    assert counts.embedding == sizes["embedding.weight"]
    assert counts.norm == sum(p.numel() for p in model.parameters() if p.ndim == 1)
