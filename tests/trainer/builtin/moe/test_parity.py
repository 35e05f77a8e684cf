"""The first 20 losses on every pair of devices that are present."""

from __future__ import annotations

import itertools

import pytest
import torch

from podium.trainer.builtin.distributed import Ranks
from podium.trainer.builtin.setup import build_parts, choose_precision

STEPS, TOLERANCE = 20, 1e-3


def devices():
    found = ["cpu"]
    found += ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return found


def losses(device, data, config):
    parts = build_parts(config, data, choose_precision("fp32", torch.device(device)), Ranks())
    found = []
    for _ in range(STEPS):
        batch = parts.loader.next_batch()
        if parts.routing is not None:
            parts.routing.expect(parts.loader.domains_B)
        found.append(parts.stepper.step(1e-3, *batch)[0].item())
    parts.loader.close()
    return found


@pytest.mark.parametrize("kind", ["dense", "top-1", "top-2"])
def test_the_first_losses_are_alike_on_every_pair_of_devices(kind, domain_data, moe_config):
    pairs = list(itertools.combinations(devices(), 2))
    if not pairs:
        pytest.skip(f"parity needs two kinds of device; this machine has {', '.join(devices())} alone")
    model = moe_config().model.model_dump()
    moe = None if kind == "dense" else {**model["moe"], "topk": int(kind[-1])}
    # no noise: every device has random numbers of its own
    config = moe_config(model={**model, "moe": moe}, router=None if moe is None else {"noise": 0.0})
    for one, other in pairs:
        assert losses(one, domain_data, config) == pytest.approx(losses(other, domain_data, config), abs=TOLERANCE)
