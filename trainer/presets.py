"""Named configs to start from. The vocabulary, where a preset leaves it out, is the dataset's. Without torch."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        # a first run: a minute on two CPU cores
        "model": {"family": "transformer", "d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 176},
        "data": {"sequence_length": 64},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"warmup_fraction": 0.1},
        "batch": {"sequences": 16},
        "max_steps": 300,
        "evaluation": {"every_steps": 50},
        "checkpoint": {"every_steps": 100},
    },
    "10m": {
        # the parameter-allocation study's baseline: 35 % embeddings, GLU expansion 2.66, vocabulary 16,000
        "model": {
            "family": "transformer",
            "vocab_size": 16000,
            "allocation": {"parameters": 10_000_000, "embedding_share": 0.35, "glu_expansion": 2.66},
        },
        "data": {"sequence_length": 256},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_fraction": 0.05},
        "batch": {"sequences": 4},
        "max_tokens": 5_000_000,
        "evaluation": {"every_steps": 500},
        "checkpoint": {"every_steps": 2500},
    },
    "nano": {
        # the smallest shape at which language comes out right: 6 layers of 384, as nanoGPT's on characters
        "model": {"family": "transformer", "d_model": 384, "n_layers": 6, "n_heads": 6, "d_ff": 1024},
        "data": {"sequence_length": 256},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_fraction": 0.02},
        "batch": {"sequences": 64},
        "max_steps": 5000,
        "evaluation": {"every_steps": 250},
        "checkpoint": {"every_steps": 500},
    },
}
"""Fields of a TrainConfig by preset name."""
