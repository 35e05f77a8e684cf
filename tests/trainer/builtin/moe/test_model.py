"""GPT-2 and its mixtures: equal at the start, exact in gradients, counts and losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from podium.trainer.builtin.model_config import GPT2Config, MoEConfig, RouterConfig
from podium.trainer.builtin.models.experts import Dispatch, Experts
from podium.trainer.builtin.models.gpt2 import GPT2, load_pretrained
from podium.trainer.builtin.models.moe import combine_weights, load_balance_loss, z_loss
from podium.trainer.trial.errors import ConfigError


@pytest.fixture
def tokens_BT():
    return torch.randint(0, 48, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("moe", "total", "active"),
    [(None, 124_439_808, None), (1, 256_692_480, 124_464_384), (2, 256_692_480, 143_354_112)],
)
def test_the_real_shape_has_the_contracts_parameters(moe, total, active):
    config = GPT2Config(moe=None if moe is None else MoEConfig(topk=moe))
    with torch.device("meta"):
        model = GPT2(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    counts = config.parameter_counts()
    assert (counts.total, counts.active) == (total, active)
    parts = counts.embedding + counts.attention + counts.feed_forward + counts.norm + counts.output + counts.router
    assert parts == total
    if moe is not None:
        idle = sum(p.numel() for p in model.mixtures[0].experts[0].parameters()) * (8 - moe) * len(model.mixtures)
        assert total - idle == active


@pytest.mark.parametrize("topk", [1, 2])
def test_a_mixture_equals_the_dense_model_at_the_start(make_model, tokens_BT, topk):
    dense, mixture = make_model().eval(), make_model(topk=topk).eval()
    torch.testing.assert_close(mixture(tokens_BT)[0], dense(tokens_BT)[0], atol=1e-5, rtol=0)
    loss = mixture.train()(tokens_BT, tokens_BT)[1]
    torch.testing.assert_close(loss, dense.train()(tokens_BT, tokens_BT)[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("topk", [1, 2])
def test_the_experts_gradients_add_up_to_the_dense_ones_at_the_start(make_model, tokens_BT, topk):
    dense, mixture = make_model(), make_model(topk=topk)
    mixture.router = RouterConfig(lb_coef=0.0, z_coef=0.0)
    for model in (dense, mixture):
        model(tokens_BT, tokens_BT)[1].backward()
    experts = mixture.mixtures[0].experts
    used = {int(number) for number in torch.nonzero(mixture_counts(mixture, tokens_BT))}
    assert len(used) > 1
    for name, parameter in dense.lm.transformer.h[1].mlp.named_parameters():
        gradients = [expert.get_parameter(name).grad for expert in experts]
        torch.testing.assert_close(sum(gradients), parameter.grad, atol=1e-6, rtol=1e-4)
        assert all(bool(gradients[number].any()) == (number in used) for number in range(4))
    for name, parameter in dense.lm.named_parameters():
        # a top-1 router passes some of its own gradient on to what comes before it
        if ".h.1.mlp." not in name and topk == 2:
            torch.testing.assert_close(mixture.lm.get_parameter(name).grad, parameter.grad, atol=1e-6, rtol=1e-4)


def mixture_counts(model, tokens_BT):
    found = []
    handle = model.mixtures[0].experts.register_forward_pre_hook(lambda _, inputs: found.append(inputs[2].counts))
    model(tokens_BT)
    handle.remove()
    return found[0]


def test_the_language_models_loss_reaches_a_top_1_router_at_the_start(make_model, tokens_BT):
    model = make_model(topk=1)
    model.router = RouterConfig(lb_coef=0.0, z_coef=0.0)
    model(tokens_BT, tokens_BT)[1].backward()
    assert model.mixtures[0].router.weight.grad.abs().max() > 1e-5


def test_it_reaches_a_top_2_router_as_soon_as_experts_differ(make_model, tokens_BT):
    """While both of a token's experts are the same, no choice between them can matter: the gradient is 0 then."""
    model = make_model(topk=2)
    model.router = RouterConfig(lb_coef=0.0, z_coef=0.0)
    model(tokens_BT, tokens_BT)[1].backward()
    with torch.no_grad():
        for expert in model.mixtures[0].experts:
            for parameter in expert.parameters():
                parameter -= 0.1 * parameter.grad
    model.zero_grad()
    model(tokens_BT, tokens_BT)[1].backward()
    assert model.mixtures[0].router.weight.grad.abs().max() > 1e-6


def test_router_losses_are_in_the_gradient_and_not_in_the_value(make_model, tokens_BT):
    gradients, losses = [], []
    for coefficients in ({"lb_coef": 0.0, "z_coef": 0.0}, {"lb_coef": 0.5, "z_coef": 0.5}):
        model = make_model(topk=1)
        model.router = RouterConfig(**coefficients)
        losses.append(model(tokens_BT, tokens_BT)[1])
        losses[-1].backward()
        gradients.append(model.mixtures[0].router.weight.grad)
    assert losses[0].item() == losses[1].item()
    mixture = model.mixtures[0]
    model.zero_grad()
    model(tokens_BT, tokens_BT)
    (0.5 * mixture.losses.load_balance + 0.5 * mixture.losses.z).backward()
    torch.testing.assert_close(gradients[1] - gradients[0], mixture.router.weight.grad, atol=1e-6, rtol=1e-4)


def test_combine_weights_sum_to_1_and_one_expert_keeps_switchs_gradient():
    probabilities = torch.tensor([[0.5, 0.3, 0.2]], requires_grad=True)
    two = combine_weights(probabilities.topk(2).values)
    torch.testing.assert_close(two, torch.tensor([[0.625, 0.375]]))
    one = combine_weights(probabilities.topk(1).values)
    assert one.item() == 1.0
    one.backward()
    torch.testing.assert_close(probabilities.grad, torch.tensor([[2.0, 0.0, 0.0]]))


def test_losses_are_those_computed_by_hand():
    probabilities = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    share = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert load_balance_loss(probabilities, share).item() == pytest.approx(4 * 0.55)
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    by_hand = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    assert z_loss(logits).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("topk", [1, 2])
def test_uniform_routing_has_load_balance_1_for_one_expert_and_2_for_two(topk):
    probabilities = torch.full((8, 4), 0.25)
    experts = torch.tensor([[token % 4, (token + 1) % 4][:topk] for token in range(8)])
    share = Dispatch.of(experts, 4).counts / 8
    assert load_balance_loss(probabilities, share).item() == pytest.approx(topk)


@pytest.mark.parametrize("topk", [1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_experts_equal_a_loop_over_them(topk, plain, monkeypatch):
    """In value and in every gradient, one expert without a token included, by hand-written gradients and without."""
    monkeypatch.setattr("podium.trainer.builtin.models.fused.wants_plain", lambda x: plain)
    generator = torch.Generator().manual_seed(2)
    experts = a_few_experts(generator)
    x = torch.randn(20, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    scores[:, 3] = -9.0
    chosen, numbers = scores.softmax(-1).topk(topk)
    weight = combine_weights(chosen).T.contiguous().detach().requires_grad_()
    out = experts(x, weight, Dispatch.of(numbers, 5))
    loop = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        token, choice = torch.where(numbers == number)
        hidden = F.gelu(expert.c_fc(x[token]), approximate="tanh")
        loop = loop.index_add(0, token, expert.c_proj(hidden) * weight[choice, token].unsqueeze(1))
    torch.testing.assert_close(out, loop)
    up = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    wanted = [x, weight, *experts.parameters()]
    for ours, theirs in zip(torch.autograd.grad(out, wanted, up), torch.autograd.grad(loop, wanted, up), strict=True):
        torch.testing.assert_close(ours, theirs)


def a_few_experts(generator):
    from transformers.pytorch_utils import Conv1D

    feed_forward = torch.nn.Module()
    feed_forward.c_fc, feed_forward.c_proj = Conv1D(32, 8), Conv1D(8, 32)
    experts = Experts(feed_forward.double(), 5)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return experts


def test_an_expert_takes_no_more_than_its_capacity_first_choices_first():
    dispatch = Dispatch.of(torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1]]), 3)
    assert dispatch.counts.tolist() == [4, 3, 1]
    # by choice: first choices of tokens 0 … 3, then their second ones
    assert dispatch.kept(3).tolist() == [True, True, True, True, True, False, True, True]
    assert dispatch.kept(2).tolist() == [True, True, True, False, True, False, True, False]


def test_dropped_tokens_pass_the_block_unchanged_and_are_counted(make_model, tokens_BT):
    from podium.trainer.builtin.models.moe import RoutingRecord

    model = make_model(topk=1, capacity_factor=0.25)
    mixture = model.mixtures[0]
    mixture.record = RoutingRecord(model.domains, 4, torch.device("cpu"))
    outputs = []
    handle = mixture.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(tokens_BT, tokens_BT)
    handle.remove()
    counts = mixture.record.assigned_CE[0]
    expected = int((counts - 3).clamp(min=0).sum())  # 48 tokens, 4 experts, a quarter of an even share: 3 each
    assert int(mixture.record.dropped_C[0]) == expected > 0
    assert int((outputs[0].flatten(0, 1) == 0).all(-1).sum()) == expected


def test_noise_is_in_training_alone_and_falls_to_0(make_model, tokens_BT):
    router = RouterConfig(noise=0.4, noise_fraction=0.25)
    assert [router.noise_at(step, 16) for step in (1, 2, 3, 5, 16)] == pytest.approx([0.4, 0.3, 0.2, 0.0, 0.0])
    model = make_model(topk=1)
    model.router = RouterConfig(noise=50.0)
    model.begin_step(1, 100, 42)
    assert model.mixtures[0].noise == 50.0
    quiet = mixture_counts(model.eval(), tokens_BT)
    assert torch.equal(quiet, mixture_counts(model, tokens_BT))
    noisy = [mixture_counts(model.train(), tokens_BT) for _ in range(3)]
    assert any(not torch.equal(quiet, counts) for counts in noisy)


def test_the_router_is_fp32_under_autocast(make_model, tokens_BT):
    model = make_model(topk=1)
    seen = []
    handle = model.mixtures[0].router.register_forward_hook(lambda m, i, logits: seen.append(logits.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens_BT, tokens_BT)[1].backward()
    handle.remove()
    assert seen == [torch.float32]


def test_a_state_dict_has_the_tied_matrix_once_and_comes_back(make_model, tokens_BT, tmp_path):
    from safetensors.torch import load_file, save_file

    model = make_model(topk=2)
    names = set(model.state_dict())
    assert not any("lm_head" in name for name in names)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = make_model(topk=2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(other.eval()(tokens_BT)[0], model.eval()(tokens_BT)[0], atol=0, rtol=0)


def test_pretrained_weights_go_into_every_expert(make_model, tokens_BT):
    dense = make_model()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(1.5)
    mixture = make_model(topk=2)
    load_pretrained(mixture, dense.lm)
    torch.testing.assert_close(mixture.eval()(tokens_BT)[0], dense.eval()(tokens_BT)[0], atol=1e-5, rtol=0)


def test_pretrained_weights_of_another_shape_are_refused_by_name(make_model):
    other = GPT2(GPT2Config(vocab_size=48, d_model=8, n_layers=3, n_heads=2, n_positions=32))
    with pytest.raises(ConfigError) as error:
        load_pretrained(make_model(topk=1), other.lm)
    assert [problem.where for problem in error.value.problems] == ["model.d_model", "model.n_layers"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"moe": {"layers": [2]}}, "blocks from 0 to 1, got [2]"),
        ({"moe": {"layers": [1, 1]}}, "different blocks"),
        ({"moe": {"layers": [1], "topk": 3}}, "got 3"),
        ({"d_model": 15}, "d_model must divide by n_heads"),
    ],
)
def test_a_model_that_can_not_be_is_refused(moe_config, fields, message):
    model = {"family": "gpt2", "vocab_size": 48, "d_model": 16, "n_layers": 2, "n_heads": 2, **fields}
    with pytest.raises(ConfigError) as error:
        moe_config(model=model)
    assert message in str(error.value)
