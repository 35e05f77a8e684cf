"""The transformer against what is known about it without training."""

from __future__ import annotations

import math

import pytest
import torch

from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.builtin.model_config import TransformerConfig
from podium.trainer.builtin.models import fused
from podium.trainer.builtin.models.build import build_model


def config(**changes):
    fields = {"vocab_size": 512, "d_model": 64, "n_layers": 3, "n_heads": 4, "d_ff": 160}
    return TransformerConfig(**{**fields, **changes})


def batch(vocab_size=512, sequences=4, length=32):
    generator = torch.Generator().manual_seed(1)
    x_BT = torch.randint(0, vocab_size, (sequences, length), generator=generator)
    y_BT = torch.randint(0, vocab_size, (sequences, length), generator=generator)
    return x_BT, y_BT


@pytest.mark.parametrize("tied", [True, False])
def test_loss_at_the_start_is_that_of_a_uniform_guess(tied):
    torch.manual_seed(0)
    _, loss = build_model(config(tied_embeddings=tied))(*batch())
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [{}, {"d_model": 48, "n_heads": 2, "n_layers": 5, "d_ff": 96, "vocab_size": 300}])
def test_parameters_are_those_that_the_formula_counts(tied, shape):
    of = config(tied_embeddings=tied, **shape)
    with torch.device("meta"):
        model = build_model(of)
    counts = count_parameters(of)
    assert sum(parameter.numel() for parameter in model.parameters()) == counts.total
    assert (counts.output == 0) == tied
    assert sum(p.numel() for n, p in model.named_parameters() if "feed_forward." in n) == counts.feed_forward
    assert sum(p.numel() for n, p in model.named_parameters() if "attention." in n) == counts.attention


def test_tied_matrix_is_in_a_checkpoint_once():
    names = build_model(config(tied_embeddings=True)).state_dict().keys()
    assert [name for name in names if "embedding" in name or "output" in name] == ["embedding.weight"]


def test_residual_projections_start_smaller_by_the_depth():
    torch.manual_seed(0)
    model = build_model(config(d_model=256, n_heads=4, d_ff=512, n_layers=8))
    block = model.blocks[3]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.feed_forward.projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_loss_is_the_cross_entropy_of_the_logits():
    torch.manual_seed(0)
    model = build_model(config())
    x_BT, y_BT = batch()
    logits_BTV, nothing = model(x_BT)
    no_logits, loss = model(x_BT, y_BT)
    assert nothing is None
    assert no_logits is None
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), y_BT.flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_position_sees_no_later_token():
    torch.manual_seed(0)
    model = build_model(config())
    x_BT, _ = batch()
    changed_BT = x_BT.clone()
    changed_BT[:, 20:] = (changed_BT[:, 20:] + 7) % 512
    before, after = model(x_BT)[0], model(changed_BT)[0]
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert (before[:, 20:] - after[:, 20:]).abs().max() > 1e-3


def test_sequences_longer_than_the_rotary_table_grow_it():
    torch.manual_seed(0)
    model = build_model(config(n_layers=1, d_model=16, n_heads=2, d_ff=16))
    x_BT = torch.randint(0, 512, (1, 1100))
    long, short = model(x_BT)[0], model(x_BT[:, :64])[0]
    torch.testing.assert_close(long[:, :64], short, rtol=0, atol=1e-5)


def test_attention_depends_on_the_distance_of_tokens_alone():
    torch.manual_seed(0)
    rotary = build_model(config()).rotary
    cos, sin = rotary(40, torch.device("cpu"))
    q_H, k_H = torch.randn(2, 16)
    turned_q = fused.rotate(q_H.expand(1, 40, 1, 16), cos, sin)[0, :, 0]
    turned_k = fused.rotate(k_H.expand(1, 40, 1, 16), cos, sin)[0, :, 0]
    products = turned_q @ turned_k.T
    for distance in (0, 1, 7):
        along = products.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)


def plain_gradients(model, x_BT, y_BT, monkeypatch):
    monkeypatch.setattr(fused, "wants_plain", lambda _: True)
    return gradients(model, x_BT, y_BT)


def gradients(model, x_BT, y_BT):
    model.zero_grad()
    _, loss = model(x_BT, y_BT)
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_elements", [2**25, 512 * 50, 1])
def test_hand_written_gradients_equal_those_of_plain_operations(tied, chunk_elements, monkeypatch):
    torch.manual_seed(0)
    model = build_model(config(tied_embeddings=tied)).double()  # so that only a mistake can make a difference
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", chunk_elements)
    loss, ours = gradients(model, *batch())
    plain_loss, plain = plain_gradients(model, *batch(), monkeypatch)
    assert loss == pytest.approx(plain_loss, abs=1e-10)
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-7, atol=1e-10)


def test_gradient_follows_a_scaled_loss():
    torch.manual_seed(0)
    model = build_model(config())
    x_BT, y_BT = batch()
    _, whole = gradients(model, x_BT, y_BT)
    model.zero_grad()
    (model(x_BT, y_BT)[1] / 4).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name] / 4, rtol=1e-5, atol=1e-8)


def test_loss_of_a_hopeless_target_is_finite():
    x_RD, weight_VD = torch.tensor([[1000.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = fused.linear_cross_entropy(x_RD, weight_VD, torch.tensor([1]))
    assert loss.item() == pytest.approx(2000.0)
