"""One optimizer step: what accumulation, clipping and the loss scale may and may not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from podium.trainer.builtin.models.build import build_model
from podium.trainer.builtin.optim.build import build_optimizer
from podium.trainer.builtin.setup import Precision, Stepper

CPU = torch.device("cpu")


@pytest.fixture
def make_stepper(tiny_config):
    def make(dtype=torch.float32, **options):
        torch.manual_seed(0)
        config = tiny_config()
        model = build_model(config.model)
        settings = {"max_grad_norm": 1.0, **options}
        stepper = Stepper(model, build_optimizer(model, config.optimizer), Precision(CPU, dtype), **settings)
        return model, stepper

    return make


def batch(seed=0):
    tokens = np.random.default_rng(seed).integers(0, 64, size=(8, 17))
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_accumulation_changes_no_step(make_stepper):
    whole, one = make_stepper()
    parts, four = make_stepper(micro_tokens=2 * 16)
    for step in range(3):
        loss, norm = one.step(0.01, *batch(step))
        other_loss, other_norm = four.step(0.01, *batch(step))
        assert loss.item() == pytest.approx(other_loss.item(), abs=1e-6)
        assert norm.item() == pytest.approx(other_norm.item(), rel=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-3, atol=1e-5)


def test_the_norm_is_that_before_clipping_and_clipping_is_torchs(make_stepper):
    ours, stepper = make_stepper(max_grad_norm=0.01)
    theirs, _ = make_stepper()
    x_BT, y_BT = batch()
    _, norm = stepper.step(0.01, x_BT, y_BT)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer.param_groups[0]["params"] = [parameter for parameter in theirs.parameters() if parameter.ndim == 2]
    gains = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    optimizer.add_param_group({"params": gains, "weight_decay": 0.0})
    theirs(torch.from_numpy(x_BT), torch.from_numpy(y_BT))[1].backward()
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.01)
    optimizer.step()
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert norm > 0.01
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-3, atol=1e-6)


def test_without_clipping_the_norm_is_still_told(make_stepper):
    _, stepper = make_stepper(max_grad_norm=None)
    assert stepper.step(0.01, *batch())[1] > 0


def test_half_precision_with_a_loss_scale_follows_full_precision(make_stepper):
    full, plain = make_stepper()
    half, scaled = make_stepper(dtype=torch.float16)
    assert plain.scaler is None
    assert scaled.scaler is not None
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        loss, norm = plain.step(0.01, *batch(step))
        half_loss, half_norm = scaled.step(0.01, *batch(step))
        assert half_loss.item() == pytest.approx(loss.item(), abs=5e-3)
        assert half_norm.item() == pytest.approx(norm.item(), rel=0.05)  # unscaled again
    assert (weights(full) - weights(half)).abs().mean() < 2e-3


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_falls(make_stepper):
    model, stepper = make_stepper(dtype=torch.float16)
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = weights(model)
    loss, _ = stepper.step(0.01, *batch())
    assert loss.isfinite()
    assert torch.equal(before, weights(model))
    assert stepper.scaler.get_scale() == 2.0**59


def test_bf16_keeps_weights_in_fp32_and_learns(make_stepper):
    model, stepper = make_stepper(dtype=torch.bfloat16)
    losses = [stepper.step(0.01, *batch())[0].item() for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
