"""Named configs to start from. The vocabulary, where a preset leaves it out, is the dataset's. Without torch."""

from __future__ import annotations

from typing import Any

from podium.trainer.moe_presets import MOE_PRESETS

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
    "speedrun": {
        # modded-nanogpt's baseline of October 2024, on FineWeb's GPT-2 tokens; the batch is 512 on any number of GPUs
        "model": {"family": "speedrun", "vocab_size": 50304},
        "data": {"sequence_length": 1024, "order": "sequential"},
        "optimizer": {"name": "muon", "learning_rate": 0.0018, "rest": {"learning_rate": 0.0036}},
        "schedule": {"name": "warmdown", "warmup_fraction": 0.0, "final_fraction": 0.0, "warmdown_steps": 1450},
        "batch": {"sequences": 512, "micro_batch": 64},
        "max_steps": 5100,
        "max_grad_norm": None,
        # all of the split, which of FineWeb is the first 10,485,760 tokens
        "evaluation": {"every_steps": 125, "batch_sequences": 32},
        "checkpoint": {"every_steps": 500},
        "runtime": {"untimed_steps": 10},
    },
    "speedrun-smoke": {
        # the same in a minute on two CPU cores, on any prepared text
        "model": {"family": "speedrun", "d_model": 64, "n_layers": 3, "n_heads": 2},
        "data": {"sequence_length": 128, "order": "sequential"},
        "optimizer": {"name": "muon", "learning_rate": 0.005, "rest": {"learning_rate": 0.01}},
        "schedule": {"name": "warmdown", "warmup_fraction": 0.0, "final_fraction": 0.0, "warmdown_fraction": 0.284},
        "batch": {"sequences": 8},
        "max_steps": 120,
        "max_grad_norm": None,
        "evaluation": {"every_steps": 30, "sequences": 64},
        "checkpoint": {"every_steps": 60},
    },
    **MOE_PRESETS,
}
"""Fields of a TrainConfig by preset name."""
