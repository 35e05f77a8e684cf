"""Our AdamW against PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch

from podium.trainer.builtin.config import AdamWConfig
from podium.trainer.builtin.optim.adamw import AdamW
from podium.trainer.builtin.optim.build import build_optimizer, decay_groups


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4))


def take_steps(model, step, count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        model.zero_grad()
        model(torch.randn(6, 8, generator=generator)).square().mean().backward()
        step()


SETTINGS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


def test_steps_equal_those_of_torch_bit_for_bit():
    ours, theirs = make_model(), make_model()
    optimizer = AdamW(decay_groups(ours, 0.1), **SETTINGS)
    reference = torch.optim.AdamW(decay_groups(theirs, 0.1), lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    take_steps(ours, optimizer.step)
    take_steps(theirs, reference.step)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_state_is_read_by_torch():
    ours, theirs = make_model(), make_model()
    optimizer = AdamW(decay_groups(ours, 0.1), **SETTINGS)
    take_steps(ours, optimizer.step)
    theirs.load_state_dict(ours.state_dict())
    reference = torch.optim.AdamW(decay_groups(theirs, 0.1), fused=True)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(ours, optimizer.step, seed=1)
    take_steps(theirs, reference.step, seed=1)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_steps_after_loading_the_state_equal_uninterrupted_ones():
    whole, cut = make_model(), make_model()
    optimizer = AdamW(decay_groups(whole, 0.1), **SETTINGS)
    first = AdamW(decay_groups(cut, 0.1), **SETTINGS)
    take_steps(whole, optimizer.step)
    take_steps(cut, first.step)
    second = AdamW(decay_groups(cut, 0.1), **SETTINGS)
    second.load_state_dict(first.state_dict())
    take_steps(whole, optimizer.step, seed=1)
    take_steps(cut, second.step, seed=1)
    for mine, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_dividing_in_the_kernel_is_dividing_the_gradients():
    ours, theirs = make_model(), make_model()
    optimizer = AdamW(decay_groups(ours, 0.1), **SETTINGS)
    reference = AdamW(decay_groups(theirs, 0.1), **SETTINGS)

    def divided():
        for parameter in theirs.parameters():
            parameter.grad /= 3.0
        reference.step()

    take_steps(ours, lambda: optimizer.step(divide_by=torch.tensor(3.0)))
    take_steps(theirs, divided)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_weight_decay_is_for_matrices_alone():
    model = make_model()
    decayed, free = decay_groups(model, 0.1)
    assert [parameter.ndim for parameter in decayed["params"]] == [2, 2]
    assert {parameter.ndim for parameter in free["params"]} == {1}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_learning_rate_zero_moves_nothing():
    model = make_model()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, AdamWConfig(learning_rate=0.1))
    optimizer.set_learning_rate(0.0)
    take_steps(model, optimizer.step)
    assert all(torch.equal(was, now) for was, now in zip(before, model.parameters(), strict=True))


def test_making_one_does_not_import_the_compiler():
    import subprocess
    import sys

    code = (
        "import sys, torch; from podium.trainer.builtin.optim.adamw import AdamW; "
        "p = torch.nn.Parameter(torch.ones(2, 2)); a = AdamW([{'params': [p], 'weight_decay': 0.0}], lr=.1, beta1=.9, "
        "beta2=.9, eps=1e-8); p.grad = p.detach(); a.step(); assert 'torch._dynamo' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("grad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_reaches_the_weights(grad):
    # so that the next loss says so: the loop ends on it
    model = make_model()
    optimizer = build_optimizer(model, AdamWConfig(learning_rate=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, grad)
    optimizer.step()
    assert not all(parameter.isfinite().all() for parameter in model.parameters())
