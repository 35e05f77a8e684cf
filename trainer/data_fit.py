"""Whether a config and a prepared dataset go together; asked before anything is written. Without torch."""

from __future__ import annotations

from podium.trainer.config import TrainConfig
from podium.trainer.data.manifest import Manifest, check_lengths
from podium.trainer.errors import ConfigError, Problem


def check_data(config: TrainConfig, manifest: Manifest) -> None:
    """Raises ConfigError for a vocabulary or an evaluation that the data does not have, DataError for a short split."""
    length, split = config.data.sequence_length, config.data.validation_split
    check_lengths(manifest, length, (config.data.train_split, split))
    problems = []
    if manifest.tokenizer_size > config.model.vocab_size:
        problems.append(
            Problem(
                "model.vocab_size",
                f"must be at least the dataset's {manifest.tokenizer_size} tokens, got {config.model.vocab_size}",
            )
        )
    windows, wanted = (manifest.split(split).tokens - 1) // length, config.evaluation.sequences
    if wanted is not None and wanted > windows:
        problems.append(
            Problem("evaluation.sequences", f"must be at most the {windows} that split {split!r} has, got {wanted}")
        )
    if config.data.balance_tokens and not manifest.domains:
        problems.append(Problem("data.balance_tokens", "needs data of several domains, got one corpus"))
    if problems:
        raise ConfigError(problems, source=f"dataset {manifest.fingerprint}")
