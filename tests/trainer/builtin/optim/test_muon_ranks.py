"""Two gloo processes share the orthogonalisation, and step as one process does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

_RANK = """
import sys, torch
from torch import nn
from podium.trainer.builtin.distributed import joined, launched_ranks
from podium.trainer.builtin.optim.build import build_optimizer
from podium.trainer.builtin.config import MuonConfig

def train(ranks):
    torch.manual_seed(0)
    model = nn.Module()
    # three matrices of one shape (an odd number for two ranks), a stack, and one of its own shape
    model.blocks = nn.ParameterList([torch.randn(8, 16) for _ in range(3)] + [torch.randn(3, 8, 8), torch.randn(8, 4)])
    model.gain = nn.Parameter(torch.randn(8))
    config = MuonConfig(name="muon", learning_rate=0.01, variance_reduction=True, cautious_weight_decay=True)
    optimizer = build_optimizer(model, config, ranks=ranks)
    optimizer.warm_up()
    for step in range(6):
        for index, parameter in enumerate(model.parameters()):
            idle = index == 1 and step < 3
            parameter.grad = None if idle else torch.randn(parameter.shape) * 0.1 + parameter.detach().sin()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], optimizer.state_dict()

ranks = launched_ranks()
with joined(ranks, torch.device("cpu")):
    torch.save(train(ranks), sys.argv[1])
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(path, env):
    return subprocess.Popen(
        [sys.executable, "-c", _RANK, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(weights, optimizer state) of one process, and of each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [start(folder / "one.pt", {})]
    processes += [
        start(folder / f"rank{rank}.pt", {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one", "rank0", "rank1")]


def test_two_ranks_take_the_steps_of_one(trained):
    one, *ranks = trained
    for rank in ranks:
        for mine, other in zip(one[0], rank[0], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_ranks_do_not_differ_by_a_bit(trained):
    _, first, second = trained
    for mine, other in zip(first[0], second[0], strict=True):
        assert torch.equal(mine, other)
    for number, state in first[1]["matrices"].items():
        assert all(torch.equal(value, second[1]["matrices"][number][name]) for name, value in state.items())
