"""Byte-level BPE (Sennrich et al., 2016; over bytes as in GPT-2), trained on the corpus by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from podium.trainer.builtin.data.manifest import (
    END_OF_TEXT,
    MAX_VOCABULARY,
    MIN_FREQUENCY,
    MIN_VOCABULARY,
    TOKEN_BYTES,
    TOKENIZER,
)
from podium.trainer.trial.errors import DataError


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: the same for the same texts, whatever the number of threads.

    It has fewer where no pair of tokens occurs twice any more. Raises DataError for a vocabulary that can't be.
    """
    if not MIN_VOCABULARY <= vocab_size <= MAX_VOCABULARY:
        raise DataError(f"vocab_size: must be between {MIN_VOCABULARY} and {MAX_VOCABULARY}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a prepared dataset. Raises DataError where it is missing or damaged."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise DataError(f"{path}: not there; a dataset's folder has one")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises bare Exception
        raise DataError(f"{path}: not a tokenizer: {error}") from None


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the token after every document. Raises DataError for a tokenizer that has none."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    if token is None:
        raise DataError(f"tokenizer: must have the token {END_OF_TEXT}, got one without")
    return token


def bytes_per_token(tokenizer: Tokenizer) -> npt.NDArray[np.uint16]:
    """UTF-8 bytes that each token stands for, by id; 0 for the end of text.

    In a byte-level vocabulary every character of an entry stands for one byte.
    """
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.uint16)
    for entry, token in tokenizer.get_vocab().items():
        lengths[token] = 0 if entry == END_OF_TEXT else len(entry)
    return lengths


def token_bytes(folder: Path) -> npt.NDArray[np.uint16]:
    """`bytes_per_token` of a prepared dataset: the sum over targets is the denominator of bits per byte."""
    lengths: npt.NDArray[np.uint16] = np.load(folder / TOKEN_BYTES)
    return lengths


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `token_bytes.npy` into a dataset's folder."""
    (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    np.save(folder / TOKEN_BYTES, bytes_per_token(tokenizer))
