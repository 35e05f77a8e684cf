"""Named configs to start from. The vocabulary, where a preset leaves it out, is the dataset's. Without torch."""

from __future__ import annotations

import copy
from typing import Any, Literal

from podium.trainer.trial.errors import ConfigError, Problem

# The MoE-emergence study's runs by hand: GPT-2 upcycled, dense and as mixtures, on code, mathematics and prose.
#
# Their values are a contract (systems page of the study); `shared` is what all five have.

Mode = Literal["dense", "moe"]

_SHARED: dict[str, Any] = {
    "model": {"family": "gpt2", "source": "gpt2", "moe": None},
    "data": {"sequence_length": 512, "balance_tokens": True},
    "optimizer": {"learning_rate": 5e-5, "beta2": 0.999, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup_fraction": 0.1, "final_fraction": 0.0},
    "batch": {"sequences": 8, "micro_batch": 2, "fit_memory": True},
    "max_grad_norm": 1.0,
    "evaluation": {"every_steps": 200, "batch_sequences": 8},
    "checkpoint": {"every_steps": 500, "keep_last": 3},
    "seed": 42,
}
_TOP1 = {"layers": [8, 9, 10, 11], "num_experts": 8, "topk": 1}
_ROUTER = {"lb_coef": 0.01, "z_coef": 0.001, "noise": 0.1, "noise_fraction": 0.25, "log_every_steps": 100}


def _preset(**changes: Any) -> dict[str, Any]:
    fields = copy.deepcopy(_SHARED)
    for name, value in copy.deepcopy(changes).items():
        fields[name] = {**fields[name], **value} if isinstance(fields.get(name), dict) else value
    return fields


MOE_PRESETS: dict[str, dict[str, Any]] = {
    # a gate: does it train, save, resume and record? `--mode moe` makes it the mixture's
    "shakedown": _preset(
        max_steps=100,
        data={"balance_tokens": False},
        evaluation={"every_steps": 50},
        checkpoint={"every_steps": 50},
    ),
    "dense": _preset(max_steps=5000),
    "moe-main": _preset(max_steps=10_000, model={"moe": _TOP1}, router=_ROUTER),
    # no noise and so no annealing: noise would confound a collapse
    "no-lb": _preset(
        max_steps=2000,
        model={"moe": _TOP1},
        router={**_ROUTER, "lb_coef": 0.0, "noise": 0.0},
        stop={"collapse": {"share": 0.6, "checks": 3, "every_steps": 100}},
    ),
    "top2": _preset(max_steps=3000, model={"moe": {**_TOP1, "topk": 2}}, router=_ROUTER),
}
"""Fields of a TrainConfig by preset name."""
SIZE_MB = {"shakedown": 1.0}
"""Megabytes a domain, before the split, where it is not 10."""
QUESTIONS = {
    "shakedown": "Does it train, save, resume and record?",
    "dense": "How low does the dense GPT-2 come on each domain?",
    "moe-main": "Do the experts of an upcycled GPT-2 specialise by domain?",
    "no-lb": "What becomes of the experts without load balancing?",
    "top2": "What does a second expert for every token change?",
}
TINY = {"source": None, "d_model": 64, "n_layers": 12, "n_heads": 4, "n_positions": 1024, "dropout": 0.0}
"""`--model tiny`: a random GPT-2 made on the spot, with as many blocks as the real one."""
TINY_VOCABULARY = 2048


def set_mode(fields: dict[str, Any], preset: str, mode: Mode) -> None:
    """Make a preset's fields those of `mode`. Raises ConfigError where the preset has one of its own."""
    own: Mode = "dense" if fields["model"]["moe"] is None else "moe"
    if preset != "shakedown":
        if mode != own:
            raise ConfigError(Problem("--mode", f"must be {own} for --preset {preset}, got {mode}"))
        return
    if mode == "moe":
        fields["model"]["moe"] = copy.deepcopy(_TOP1)
        fields["router"] = copy.deepcopy(_ROUTER)


def set_model(fields: dict[str, Any], model: str) -> None:
    """Take the first weights from `model`: gpt2, a folder, s3://…, or `tiny`."""
    fields["model"] |= TINY if model == "tiny" else {"source": model}


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
