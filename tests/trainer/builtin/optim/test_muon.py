"""Muon against PyTorch's, its options against their papers' formulas, and what a resume and absent gradients need."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from podium.trainer.builtin.config import MuonConfig
from podium.trainer.builtin.optim.adamw import AdamW
from podium.trainer.builtin.optim.build import build_optimizer
from podium.trainer.builtin.optim.muon import Muon, orthogonalize

RATE = 0.0018


def make(model, **settings):
    return build_optimizer(model, MuonConfig(name="muon", learning_rate=RATE, **settings))


def muon_of(matrices, **settings):
    config = MuonConfig(name="muon", learning_rate=RATE, **settings)
    return Muon(matrices, AdamW([], lr=RATE, beta1=0.9, beta2=0.95, eps=1e-8), config)


def matrices(seed=0, shapes=((16, 8), (8, 16), (8, 8), (16, 8))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def follow(parameters, optimizer, steps=20):
    """Steps on gradients that depend on the weights, so that errors would add up."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = 0.1 * parameter.detach().sin() + 0.01 * noise
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.95, 0.8])
@pytest.mark.parametrize("nesterov", [True, False])
def test_bf16_equals_that_of_torch_over_20_steps(momentum, nesterov):
    ours, theirs = matrices(), matrices()
    settings = {"momentum": momentum, "nesterov": nesterov}
    follow(ours, muon_of(ours, orthogonalization_precision="bf16", **settings))
    reference = torch.optim.Muon(theirs, lr=RATE, adjust_lr_fn="match_rms_adamw", weight_decay=0, eps=1e-7, **settings)
    follow(theirs, reference)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


class PlainMuon:
    """The speedruns' recipe, matrix by matrix in fp32: the sum form of momentum, their rate."""

    def __init__(self, parameters, rate, momentum=0.95):
        self.parameters, self.rate, self.momentum = parameters, rate, momentum
        self.sums = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self):
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            total.mul_(self.momentum).add_(parameter.grad)
            x = parameter.grad + self.momentum * total
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            x = x / x.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = x.T if tall else x
            parameter -= self.rate * math.sqrt(max(parameter.shape)) * x


def test_fp32_equals_the_sum_form_at_a_fifth_of_the_rate_over_20_steps():
    ours, theirs = matrices(), matrices()
    follow(ours, muon_of(ours, orthogonalization_precision="fp32"))
    follow(theirs, PlainMuon(theirs, 0.2 * RATE))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_a_stack_is_its_matrices():
    generator = torch.Generator().manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 8, 16, generator=generator))
    single = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    gradient = torch.randn(3, 8, 16, generator=generator)
    ours, theirs = muon_of([stack], variance_reduction=True), muon_of(single, variance_reduction=True)
    for _ in range(3):
        stack.grad = gradient.clone()
        for parameter, own in zip(single, gradient, strict=True):
            parameter.grad = own.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(stack.detach(), torch.stack([parameter.detach() for parameter in single]))


def test_only_matrices_of_blocks_are_orthogonalized(make_model):
    model = make_model()
    optimizer = make(model)
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert named == {f"blocks.{i}.{j}.weight" for i in range(3) for j in (0, 2)}
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(model.parameters()))


def test_the_rest_keeps_its_proportion_to_the_matrices_rate(make_model):
    optimizer = build_optimizer(
        make_model(), MuonConfig(name="muon", learning_rate=0.02, rest={"learning_rate": 0.005})
    )
    optimizer.set_learning_rate(0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0025, 0.0025])


def test_the_rest_has_the_matrices_rate_by_default(make_model):
    assert {group["lr"] for group in make(make_model()).param_groups} == {RATE}


@pytest.mark.parametrize("settings", [{}, {"variance_reduction": True, "cautious_weight_decay": True}])
def test_steps_after_loading_the_state_equal_uninterrupted_ones(make_model, take_steps, settings):
    whole, cut = make_model(), make_model()
    optimizer, first = make(whole, **settings), make(cut, **settings)
    take_steps(whole, optimizer)
    take_steps(cut, first)
    second = make(cut, **settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(whole, optimizer, seed=1)
    take_steps(cut, second, seed=1)
    for mine, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_state_goes_through_a_file(make_model, take_steps, tmp_path):
    model = make_model()
    optimizer = make(model, variance_reduction=True)
    take_steps(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    other = make(make_model(), variance_reduction=True)
    other.load_state_dict(read)
    for mine, its in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_a_layer_without_gradient_stays_and_shifts_nobody(make_model, take_steps):
    # the trap of the speedruns' optimizer: there, a skipped matrix gave the next one its update
    with_idle, without = make_model(blocks=3), make_model(blocks=2)
    for name, parameter in without.named_parameters():
        parameter.data.copy_(dict(with_idle.named_parameters())[name])
    idle = [parameter.clone() for parameter in with_idle.blocks[2].parameters()]
    middle = with_idle.blocks[1]
    take_steps(with_idle, make(with_idle, variance_reduction=True), active=2)
    take_steps(without, make(without, variance_reduction=True))
    for mine, other in zip(middle.parameters(), without.blocks[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    for was, now in zip(idle, with_idle.blocks[2].parameters(), strict=True):
        assert torch.equal(was, now)


def test_an_idle_matrix_between_others_shifts_nobody():
    three, two = matrices(shapes=((8, 16), (8, 16), (8, 16))), matrices(shapes=((8, 16), (8, 16), (8, 16)))
    del two[1]
    all_of, some = muon_of(three), muon_of(two)
    for step in range(3):
        for parameter, other in ((three[0], two[0]), (three[2], two[1])):
            parameter.grad = torch.full((8, 16), 0.1 + step) * parameter.detach().sign()
            other.grad = parameter.grad.clone()
        all_of.step()
        some.step()
    torch.testing.assert_close(three[0], two[0])
    torch.testing.assert_close(three[2], two[1])
    assert all_of.state[three[1]]["momentum"].abs().max() == 0


def test_compiled_code_sees_one_shape_however_many_layers_are_in_use(monkeypatch):
    seen = []

    def noted(x_KMN, method, steps):
        seen.append(tuple(x_KMN.shape))
        return orthogonalize(x_KMN, method, steps)

    monkeypatch.setattr("podium.trainer.builtin.optim.muon.compiled_orthogonalize", lambda: noted)
    shapes = ((8, 16), (8, 16), (8, 16), (4, 4))
    ours, theirs = matrices(shapes=shapes), matrices(shapes=shapes)
    config = MuonConfig(name="muon", learning_rate=RATE, orthogonalization_precision="fp32")
    rest = AdamW([], lr=RATE, beta1=0.9, beta2=0.95, eps=1e-8)
    compiled = Muon(ours, rest, config, compiled=True)
    compiled.warm_up()
    plain = muon_of(theirs, orthogonalization_precision="fp32")
    for used in (1, 2, 3):
        for optimizer, parameters in ((compiled, ours), (plain, theirs)):
            for index, parameter in enumerate(parameters):
                parameter.grad = None if used <= index < 3 else torch.full_like(parameter, 0.1 * used).sin()
            optimizer.step()
    assert set(seen) == {(3, 8, 16), (1, 4, 4)}
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_dividing_in_the_step_is_dividing_the_gradients(make_model):
    ours, theirs = make_model(), make_model()
    optimizer, reference = make(ours), make(theirs)
    tokens = torch.arange(11)
    for _ in range(3):
        for model in (ours, theirs):
            for parameter in model.parameters():
                parameter.grad = None
            model(tokens).backward()
        for parameter in theirs.parameters():
            parameter.grad /= 3.0
        optimizer.step(divide_by=torch.tensor(3.0))
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_variance_reduction_is_the_papers():
    (ours,) = matrices(shapes=((6, 10),))
    theirs = ours.detach().clone()
    gradients = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(3))
    optimizer = muon_of([ours], variance_reduction=True, variance_beta2=0.9, momentum=0.8)
    average, second = torch.zeros(6, 10), torch.zeros(6)
    for gradient in gradients:
        ours.grad = gradient.clone()
        optimizer.step()
        average = 0.8 * average + 0.2 * gradient
        o = orthogonalize((0.2 * gradient + 0.8 * average)[None], "newton_schulz", 5)[0]
        second = 0.9 * second + 0.1 * (o * o).mean(dim=1)
        o = o / (second.sqrt()[:, None] + 1e-8)
        theirs = theirs - 0.2 * RATE * math.sqrt(60) / o.norm() * o
    torch.testing.assert_close(ours.detach(), theirs)


@pytest.mark.parametrize("variance_reduction", [False, True])
def test_an_update_has_a_fifth_of_the_rate_as_its_size(variance_reduction):
    (parameter,) = matrices(shapes=((32, 64),))
    before = parameter.detach().clone()
    parameter.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    muon_of([parameter], variance_reduction=variance_reduction, orthogonalization="polar_express").step()
    rms = (parameter.detach() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(0.2 * RATE, rel=0.1)


def test_cautious_decay_shrinks_only_what_the_update_shrinks_too():
    (ours,) = matrices(shapes=((6, 10),))
    (plain,) = matrices(shapes=((6, 10),))
    before = ours.detach().clone()
    gradient = torch.randn(6, 10, generator=torch.Generator().manual_seed(3))
    ours.grad, plain.grad = gradient.clone(), gradient.clone()
    muon_of([ours], cautious_weight_decay=True, cautious_decay=5.0).step()
    muon_of([plain]).step()
    update = before - plain.detach()
    agrees = update * before >= 0
    assert 0 < agrees.sum() < agrees.numel()
    expected = before - RATE * 5.0 * agrees * before - update
    torch.testing.assert_close(ours.detach(), expected)


def test_plain_decay_shrinks_all():
    (ours,) = matrices(shapes=((6, 10),))
    (plain,) = matrices(shapes=((6, 10),))
    before = ours.detach().clone()
    ours.grad, plain.grad = torch.ones(6, 10), torch.ones(6, 10)
    muon_of([ours], weight_decay=5.0).step()
    muon_of([plain]).step()
    torch.testing.assert_close(ours.detach(), plain.detach() - RATE * 5.0 * before)


def test_both_decays_at_once_are_refused():
    with pytest.raises(ValueError, match="weight_decay must be 0 with cautious_weight_decay"):
        MuonConfig(name="muon", learning_rate=0.1, weight_decay=0.1, cautious_weight_decay=True)


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="2 dimensions"):
        muon_of([torch.nn.Parameter(torch.ones(4))])


def test_making_one_does_not_import_the_compiler():
    import subprocess
    import sys

    code = (
        "import sys, torch; from podium.trainer.builtin.optim.build import build_optimizer; "
        "from podium.trainer.builtin.config import MuonConfig; "
        "m = torch.nn.Module(); m.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)]); "
        "o = build_optimizer(m, MuonConfig(name='muon', learning_rate=.1)); "
        "m.blocks[0](torch.ones(2, 4)).sum().backward(); o.step(); assert 'torch._dynamo' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
