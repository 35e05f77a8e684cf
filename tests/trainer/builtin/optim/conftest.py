"""Small models with matrices in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class SmallModel(nn.Module):
    """An embedding, blocks of matrices and a gain, and an output."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16, bias=False), nn.LayerNorm(16, bias=False), nn.Linear(16, 8, bias=False))
            for _ in range(blocks)
        )
        self.output = nn.Linear(8, 11, bias=False)

    def forward(self, tokens_B: torch.Tensor, active: int | None = None) -> torch.Tensor:
        """The mean loss of predicting each token from itself; blocks from `active` on are left out."""
        x_BD = self.embedding(tokens_B)
        for block in self.blocks[:active]:
            x_BD = x_BD + block(x_BD)
        return nn.functional.cross_entropy(self.output(x_BD), (tokens_B + 1) % 11)


@pytest.fixture
def make_model():
    """A SmallModel, the same each time."""

    def make(blocks: int = 3) -> SmallModel:
        torch.manual_seed(0)
        return SmallModel(blocks)

    return make


@pytest.fixture
def take_steps():
    """Train on random tokens, the same for the same seed."""

    def take(model, optimizer, count=5, seed=0, active=None):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randint(0, 11, (32,), generator=generator), active).backward()
            optimizer.step()

    return take
