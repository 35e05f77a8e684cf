"""Where the iterations send singular values, and that a batch is its matrices."""

from __future__ import annotations

import pytest
import torch

from podium.trainer.builtin.optim.muon import coefficients, orthogonalize


def images(method, lowest, steps=5):
    """What a dense set of singular values from `lowest` to 1 becomes, in fp64."""
    values = torch.logspace(torch.log10(torch.tensor(lowest)).item(), 0, 20001, dtype=torch.float64)
    if method == "polar_express":
        values = values / 1.01
    for a, b, c in coefficients(method, steps):
        values = a * values + b * values**3 + c * values**5
    return values


def matrix_with(singular_values, rows, columns):
    generator = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
    k = len(singular_values)
    return (left[:, :k] * singular_values) @ right[:, :k].T


@pytest.mark.parametrize(
    ("method", "lowest", "low", "high"),
    [("newton_schulz", 0.01, 0.68, 1.135), ("polar_express", 0.003, 0.86, 1.14)],
)
def test_five_steps_map_singular_values_near_one(method, lowest, low, high):
    mapped = images(method, lowest)
    assert low <= mapped.min().item()
    assert mapped.max().item() <= high


@pytest.mark.parametrize(
    ("method", "lowest", "low", "high"),
    [("newton_schulz", 0.01, 0.68, 1.135), ("polar_express", 0.003, 0.86, 1.14)],
)
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_a_matrix_comes_out_with_singular_values_near_one(method, lowest, low, high, shape):
    # relative to the Frobenius norm, by which the iteration divides, the least is still above `lowest`
    values = torch.logspace(0, torch.log10(torch.tensor(lowest * 3)).item(), min(shape), dtype=torch.float64)
    x = matrix_with(values, *shape)
    assert values.min() / x.norm() > lowest
    made = orthogonalize(x[None], method, 5)[0]
    found = torch.linalg.svdvals(made)
    assert low <= found.min().item()
    assert found.max().item() <= high
    # the singular vectors stay: the product with the input's transpose is symmetric
    product = made.T @ x
    torch.testing.assert_close(product, product.T)


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_a_batch_is_orthogonalized_matrix_by_matrix(method):
    x = torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(0))
    whole = orthogonalize(x, method, 5)
    for index in range(5):
        torch.testing.assert_close(whole[index], orthogonalize(x[index : index + 1], method, 5)[0])


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_a_matrix_of_zeros_stays_zero(method):
    assert orthogonalize(torch.zeros(1, 4, 6), method, 5).abs().max() == 0


def test_polar_express_converges_on_one_with_more_steps():
    mapped = images("polar_express", 0.001, steps=10)
    assert mapped.min().item() == pytest.approx(1, abs=1e-6)
    assert mapped.max().item() == pytest.approx(1, abs=1e-6)


def test_polar_express_keeps_the_safety_but_for_its_last_entry():
    made = coefficients("polar_express", 9)
    assert made[0] == (8.28721201814563 / 1.01, -23.595886519098837 / 1.01**3, 17.300387312530933 / 1.01**5)
    assert made[6] == made[7] == made[8] == (1.875, -1.25, 0.375)
