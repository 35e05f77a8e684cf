"""What a run is made of: device, data, model, optimizer; built from a config in an order that seeds decide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from podium.trainer.config import TrainConfig
from podium.trainer.curriculum import Curriculum
from podium.trainer.data.loader import SequenceLoader, evaluation_domains, rank_slice
from podium.trainer.data.manifest import TOKEN_BYTES, load_manifest
from podium.trainer.data_fit import check_data
from podium.trainer.distributed import Ranks
from podium.trainer.extension import build_run_model
from podium.trainer.models.build import start_weights
from podium.trainer.models.gpt2 import GPT2
from podium.trainer.models.speedrun import Speedrun
from podium.trainer.optim.build import Optimizer, build_optimizer
from podium.trainer.precision import Precision
from podium.trainer.router_monitor import RouterMonitor
from podium.trainer.seeding import seed_everything
from podium.trainer.stepper import Stepper, passes
from podium.trainer.storage import open_storage

COMPILE_PAYS_STEPS = 1000
"""On a GPU compiling costs about a minute and saves about half of a step of 0.1 s and more."""


@dataclass
class Parts:
    """The living objects of one run."""

    config: TrainConfig
    precision: Precision
    model: nn.Module
    wrapped: nn.Module
    """The same model, averaging gradients over ranks."""
    optimizer: Optimizer
    stepper: Stepper
    curriculum: Curriculum
    loader: SequenceLoader
    data: Path
    token_bytes: npt.NDArray[np.integer] | None
    """UTF-8 length of every token."""
    routing: RouterMonitor | None = None
    """Of a mixture of experts."""
    evaluation_domains: tuple[str, ...] = ()
    """The domain of each sequence of the declared evaluation; none where the data has none."""


def build_parts(config: TrainConfig, data: Path, precision: Precision, ranks: Ranks, *, fresh: bool = True) -> Parts:
    """Build a run at its first step. `config` is resolved, `data` a local prepared dataset.

    Not `fresh`: a checkpoint follows, so that pretrained weights are not fetched.

    Raises ConfigError and DataError where config, data and ranks do not go together.
    """
    check_data(config, load_manifest(open_storage(str(data))))
    config.batch.accumulation_steps(ranks.world_size)  # refuses ranks among which the batch does not divide
    loader = SequenceLoader(
        data,
        config.data.train_split,
        sequence_length=config.data.sequence_length,
        batch_sequences=config.batch.sequences,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=config.data.order == "shuffled",
        balance=config.data.balance_tokens,
    )
    seed_everything(config.seed)
    # on the CPU first: the same seed gives the same weights on every device
    model = build_run_model(config)
    if fresh:
        start_weights(model, config.model)
    if isinstance(model, Speedrun):
        model.head_chunk_tokens = config.runtime.head_chunk_tokens
    model.to(precision.device)
    if compiles(config, precision):
        if config.runtime.tune_kernels:
            torch._inductor.config.coordinate_descent_tuning = True
        model.compile(mode=None if config.runtime.compile_mode == "default" else config.runtime.compile_mode)
    optimizer = build_optimizer(model, config.optimizer, ranks=ranks, compiled=compiles(config, precision))
    wrapped = ranks.wrap(model, precision.device)
    stepper = Stepper(
        wrapped,
        optimizer,
        precision,
        micro_tokens=micro_tokens(config),
        max_grad_norm=config.max_grad_norm,
        ranks=ranks,
    )
    path = data / TOKEN_BYTES
    token_bytes = np.load(path) if path.is_file() else None
    curriculum = Curriculum(config)
    routing = None
    if isinstance(model, GPT2) and config.mode == "moe":
        routing = RouterMonitor(model, config, loader.names, precision.device)
    domains = evaluation_domains(
        data,
        config.data.validation_split,
        sequence_length=config.data.sequence_length,
        sequences=config.evaluation.sequences,
    )
    built = (precision, model, wrapped, optimizer, stepper, curriculum, loader, data, token_bytes)
    return Parts(config, *built, routing=routing, evaluation_domains=domains)


def micro_tokens(config: TrainConfig) -> int | None:
    """The most tokens of one forward pass on one device."""
    micro = config.batch.micro_batch
    return None if micro is None else micro * config.data.sequence_length


def compiles(config: TrainConfig, precision: Precision) -> bool:
    """Whether the model is compiled: `auto` where the run is long enough to earn the time back."""
    if config.runtime.compile == "auto":
        # a mixture's shapes follow from its routing: there is nothing to compile for
        return config.mode == "dense" and precision.device.type == "cuda" and config.steps >= COMPILE_PAYS_STEPS
    return config.runtime.compile == "always"


def warm_up(parts: Parts, ranks: Ranks) -> None:
    """Make the compiler see every shape of the run before the clock starts; changes no weight and no random state."""
    device = parts.precision.device
    for sequences, length in training_shapes(parts, ranks):
        tokens_bT = torch.zeros(sequences, length, dtype=torch.int64, device=device)
        with parts.precision.autocast():
            _, loss = parts.wrapped(tokens_bT, tokens_bT)
        loss.backward()
        parts.optimizer.zero_grad()
    parts.optimizer.warm_up()
    length = parts.config.data.sequence_length
    evaluated_BT = torch.zeros(parts.config.evaluation.batch_sequences, length, dtype=torch.int64, device=device)
    parts.model.eval()
    with torch.no_grad(), parts.precision.autocast():
        parts.model(evaluated_BT)
    parts.model.train()


def training_shapes(parts: Parts, ranks: Ranks) -> list[tuple[int, int]]:
    """(sequences, length) of every forward pass that this rank's training will make, each once."""
    found: list[tuple[int, int]] = []
    most = micro_tokens(parts.config)
    for shape in parts.curriculum.shapes:
        first, last = rank_slice(shape.sequences, ranks.rank, ranks.world_size)
        found += [(sequences, shape.length) for sequences in passes(last - first, shape.length, most)]
    return list(dict.fromkeys(found))
