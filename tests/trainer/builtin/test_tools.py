"""lr-find, overfit and generate."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.models.build import build_model
from podium.trainer.builtin.setup import Precision, build_parts, random_state
from podium.trainer.builtin.tools import RangeTest, find_learning_rate, generate, overfit, steepest, write_range_test
from podium.trainer.trial.storage import open_storage

FP32 = Precision(torch.device("cpu"), torch.float32)


@pytest.fixture
def parts(tiny_config, markov_data):
    return build_parts(tiny_config(), markov_data, FP32, Ranks())


def plain(state):
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


def test_the_range_test_puts_everything_back(parts):
    parts.stepper.step(0.01, *parts.loader.next_batch())
    weights = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in parts.optimizer.state.values()]
    loader, random = parts.loader.state_dict(), random_state()
    test = find_learning_rate(parts, steps=30)
    assert len(test.rates) > 10
    assert all(torch.equal(tensor, weights[name]) for name, tensor in parts.model.state_dict().items())
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, parts.optimizer.state.values(), strict=True))
    assert parts.loader.state_dict() == loader
    assert torch.equal(random_state()["torch_rng_state"], random["torch_rng_state"])


def test_rates_rise_exponentially_over_the_range(parts):
    test = find_learning_rate(parts, low=1e-6, high=1e-2, steps=41)
    assert test.rates[0] == pytest.approx(1e-6)
    assert test.rates[-1] == pytest.approx(1e-2)
    assert test.rates[20] == pytest.approx(1e-4)
    assert test.ended == "all 41 steps done"


def test_the_test_ends_when_the_loss_is_four_times_its_best(parts):
    test = find_learning_rate(parts, low=1e-3, high=1e4, steps=100)
    assert len(test.rates) < 100
    assert "times its best" in test.ended or "not finite" in test.ended


def test_the_suggestion_is_the_steepest_fall():
    rates = [10 ** (-6 + index / 10) for index in range(60)]
    curve = [4 - 2 / (1 + math.exp(-(math.log10(rate) + 3) * 6)) for rate in rates]  # falls fastest at 1e-3
    assert steepest(rates, curve) == pytest.approx(1e-3, rel=0.3)


def test_a_loss_that_never_falls_suggests_nothing():
    assert steepest([1e-6 * 2**n for n in range(20)], [1.0 + n for n in range(20)]) is None
    assert steepest([1e-6], [1.0]) is None


def test_a_trained_suggestion_is_between_nothing_and_too_much(parts):
    suggested = find_learning_rate(parts).suggested
    assert 1e-4 < suggested < 0.5


def test_curve_suggestion_and_plot_are_written(tmp_path):
    test = RangeTest([1e-4, 1e-3, 1e-2], [3.0, 2.0, 9.0], [3.0, 2.5, 4.0], 1e-3, "all 3 steps done")
    write_range_test(test, open_storage(str(tmp_path)))
    rows = list(csv.DictReader((tmp_path / "lr_find.csv").read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in rows] == test.rates
    assert json.loads((tmp_path / "lr_find.json").read_text())["suggested_learning_rate"] == 1e-3
    assert (tmp_path / "lr_find.svg").read_text().startswith("<?xml")


def test_a_sound_model_learns_1024_tokens_by_heart(tiny_config, markov_data):
    found = overfit(tiny_config(model=WIDE), markov_data, FP32, max_steps=300)
    assert found.passed
    assert found.loss < 0.1
    assert found.tokens == 1024


def test_a_model_that_does_not_learn_fails_the_check(tiny_config, markov_data):
    found = overfit(tiny_config(optimizer={"learning_rate": 1e-9}), markov_data, FP32, max_steps=5)
    assert not found.passed
    assert (found.steps, found.loss > 4) == (5, True)


WIDE = {"family": "transformer", "vocab_size": 64, "d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128}


class Counting(torch.nn.Module):
    """Says that the next token is the last plus one."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, idx_BT, targets_BT=None):
        return torch.nn.functional.one_hot((idx_BT + 1) % 10, 10).float() * 50, None


def test_text_goes_on_from_the_prompt_until_the_end():
    assert list(generate(Counting(), [3], tokens=4, context=8)) == [4, 5, 6, 7]
    assert list(generate(Counting(), [3], tokens=50, context=8, end=8)) == [4, 5, 6, 7]
    assert list(generate(Counting(), [3], tokens=3, context=8, temperature=0)) == [4, 5, 6]


def test_sampling_follows_its_seed(tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config().model).eval()
    texts = [list(generate(model, [1, 2], tokens=20, context=16, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [list(generate(model, [1], tokens=5, context=16, top_k=1, seed=seed)) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
