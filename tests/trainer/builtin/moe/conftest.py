"""A small mixture of experts, data of three domains made of numbers, and runs on both that take seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from podium.trainer.builtin.config import RunSpec, TrainConfig, load_config
from podium.trainer.builtin.data.manifest import TOKEN_BYTES, FileEntry, Manifest, Split
from podium.trainer.builtin.data.shards import ShardWriter
from podium.trainer.builtin.model_config import GPT2Config, MoEConfig
from podium.trainer.builtin.models.gpt2 import GPT2
from podium.trainer.trial.storage import open_storage, sha256_of

VOCABULARY = 48
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_positions": 32, "dropout": 0.0,
}  # fmt: skip
MakeModel = Callable[..., GPT2]


@pytest.fixture
def make_model() -> MakeModel:
    """A GPT-2 of two blocks, always from the same seed; keyword arguments make its second block a mixture."""

    def make(**moe: Any) -> GPT2:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = MoEConfig(**{"layers": [1], "num_experts": 4, **moe}) if moe else None
        return GPT2(GPT2Config(**SHAPE, moe=config))

    return make


@pytest.fixture(scope="session")
def domain_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains that share no token: a count up, a count down and noise, each in its third of the vocabulary."""
    folder = tmp_path_factory.mktemp("domains")
    rng = np.random.default_rng(0)
    third = VOCABULARY // 3
    splits = {}
    for split, sizes in (("train", (1700, 1300, 900)), ("validation", (330, 230, 180)), ("test", (100, 100, 100))):
        shards, total = [], 0
        for number, (name, size) in enumerate(zip(("down", "noise", "up"), sizes, strict=True)):
            steps = np.arange(size)
            own = {"up": steps, "down": -steps, "noise": rng.integers(0, third, size)}[name] % third
            with ShardWriter(folder, split, domain=name, shard_tokens=1000) as writer:
                writer.append((own + number * third).astype(np.uint16))
            shards += writer.shards
            total += size
        splits[split] = Split(tokens=total, bytes=total, documents=3, shards=shards)
    np.save(folder / TOKEN_BYTES, np.ones(VOCABULARY))
    files = {p.name: FileEntry(bytes=p.stat().st_size, sha256=sha256_of(p)) for p in sorted(folder.iterdir())}
    manifest = Manifest(
        fingerprint="fedcba9876543210",
        corpus="three domains of numbers",
        corpus_fingerprint="numbers",
        vocab_size=VOCABULARY,
        tokenizer_size=VOCABULARY,
        end_of_text=0,
        splits=splits,
        files=files,
    )
    open_storage(str(folder)).write_json("manifest.json", manifest.model_dump(mode="json"))
    return folder


@pytest.fixture
def moe_config() -> Callable[..., TrainConfig]:
    """A mixture's config of 12 steps; keyword arguments replace whole sections."""

    def make(**changes: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "model": {"family": "gpt2", **SHAPE, "moe": {"layers": [1], "num_experts": 4}},
            "data": {"sequence_length": 16, "balance_tokens": True},
            "optimizer": {"learning_rate": 0.003},
            "batch": {"sequences": 6, "micro_batch": 2},
            "max_steps": 12,
            "evaluation": {"every_steps": 4, "batch_sequences": 8},
            "checkpoint": {"every_steps": 5},
            "router": {"log_every_steps": 4, "noise": 0.5, "noise_fraction": 1.0},
            "runtime": {"device": "cpu", "threads": 1},
        }
        return load_config({**fields, **changes})

    return make


@pytest.fixture
def moe_spec(domain_data: Path, moe_config: Callable[..., TrainConfig]) -> Callable[..., RunSpec]:
    """A RunSpec of `moe_config` on `domain_data`."""

    def make(**changes: Any) -> RunSpec:
        return RunSpec(config=moe_config(**changes), dataset=f"file://{domain_data}")

    return make
